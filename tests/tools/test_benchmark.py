"""ttb.benchmark(): several callables, one table."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb


def slow(x):
    time.sleep(0.003)
    return x


def fast(x):
    return x


def test_the_faster_one_comes_first_and_the_table_is_data():
    found = ttb.benchmark(slow, fast, inputs=torch.ones(2), budget=0.5)
    assert found.fastest == "fast" and [timing.name for timing in found] == ["fast", "slow"]
    assert found["slow"].median > 0.003 and found.device == "cpu"
    assert json.loads(json.dumps(found.to_dict()))["timings"][0]["name"] == "fast"
    for text in (repr(found), found._repr_html_()):
        assert "slow" in text and f"{found['slow'].median * 1e3:.4f}" in text


def test_inputs_come_as_compile_takes_them_and_gradients_are_off():
    seen = []

    def look(x, y=None):
        seen.append((x, y, torch.is_grad_enabled()))

    x, y = torch.ones(1), torch.ones(2)
    for inputs in (x, (x, y), {"x": x, "y": y}):
        ttb.benchmark(look, inputs=inputs, budget=0.01)
        assert seen[-1][0] is x and seen[-1][2] is False
    assert seen[-1][1] is y


def test_names():
    x = torch.ones(1, 2)
    found = ttb.benchmark(nn.Linear(2, 2), nn.Linear(2, 2), inputs=x, budget=0.01, mine=fast)
    assert {timing.name for timing in found} == {"Linear", "Linear 2", "mine"}
    text = ttb.benchmark(inputs=x, budget=0.01, **{"<b>": fast})._repr_html_()
    assert "<b>" not in text


def test_what_cannot_be_timed():
    with pytest.raises(ttb.errors.InvalidOption, match="nothing to time"):
        ttb.benchmark(inputs=torch.ones(1))
    with pytest.raises(ttb.errors.InvalidOption, match="'model' is a str, which cannot be called"):
        ttb.benchmark(inputs=torch.ones(1), model="resnet")
    with pytest.raises(ttb.errors.InvalidInput, match="on cpu, meta"):
        ttb.benchmark(fast, inputs=(torch.ones(1), torch.ones(1, device="meta")))
    with pytest.raises(ZeroDivisionError):  # a call's own error is the caller's to see
        ttb.benchmark(lambda x: 1 / 0, inputs=torch.ones(1))
