"""Edges around real engines: eager's results, dtypes, sizes and devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from parts import Call

import torchtrt_bridge as ttb

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * 3).double(),
        lambda x: ((x * 100).short(), x + 1),
        lambda x: x[x.sum(-1) > 0] * 2,
        lambda x: torch.where(x > 0),
        lambda x: (x * 2).cpu(),
        lambda x: torch.unique_consecutive((x > 0).long(), return_inverse=True, return_counts=True),
    ],
    ids=["float64", "int16", "mask", "places", "to the CPU", "slices that differ"],
)
def test_a_model_is_whole_but_for_its_edges(function: Callable[..., Any]) -> None:
    x = torch.randn(6, 4, device="cuda")
    shapes = {"args.0": {0: ttb.Dim(1, 6, 12)}}
    fast = ttb.compile(Call(function).eval(), (x,), dynamic_shapes=shapes, backend="onnx", hybrid=False)
    assert fast.report.runtime == "tensorrt+torch"
    for other in (x, torch.randn(11, 4, device="cuda"), torch.randn(1, 4, device="cuda")):
        actual, expected = fast(other), function(other)
        assert type(actual) is type(expected)
        for a, b in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (actual, expected)), strict=True):
            assert (a.dtype, a.device) == (b.dtype, b.device)
            torch.testing.assert_close(a, b)


def test_inputs_in_int16() -> None:
    x = torch.tensor([-32768, 32767, 5], dtype=torch.int16, device="cuda")
    fast = ttb.compile(Call(lambda x: x.float() / 3).eval(), (x,), backend="onnx", hybrid=False)
    torch.testing.assert_close(fast(x), x.float() / 3)
