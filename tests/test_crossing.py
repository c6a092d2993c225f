"""Calls of converters on their way to another process: what crosses, what stays and why, and what is found there."""

from __future__ import annotations

import importlib
import json
import sys

import own_layers
import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.crossing import _key, from_plain, stays, to_plain
from torchtrt_bridge.forms import FormCall, Slot

SOURCE = """
import torchtrt_bridge as ttb

converter = ttb.converter("aten::relu", register=False)

@converter.tensorrt
def layers(ctx, x):
    return {result}
"""


def call(registration=own_layers.rms_converter.registration, args=(), kwargs=None, **more):
    return FormCall(registration, torch.ops.own_layers.rms.default, args, kwargs or {}, "encoder.layer.3", **more)


def test_a_call_is_the_same_on_the_other_side():
    args = (Slot(0), [Slot(1), 2, None], (1.5, float("inf")), torch.float16, torch.device("cpu"), "text")
    there = from_plain(json.loads(json.dumps(to_plain(call(args=args, kwargs={"eps": 1e-6, "other": Slot(2)})))))
    assert there.args == args and there.kwargs == {"eps": 1e-6, "other": Slot(2)}
    assert there.place == "encoder.layer.3" and there.original is torch.ops.own_layers.rms.default
    assert there.registration.tensorrt is own_layers.rms_layers
    assert there.bind(["x", "y", "z"])[0][:2] == ("x", ["y", 2, None])


def test_what_cannot_cross_says_why(monkeypatch):
    inside = ttb.converter("own_layers::rms", register=False)(lambda x, weight, eps: x)
    assert "not to be found in test_crossing by name" in stays(call(inside.registration))
    assert "is given the model's module itself" in stays(call(module=nn.ReLU()))
    assert "more than tensors and plain data" in stays(call(args=(object(),)))
    monkeypatch.setattr(sys.modules["own_layers"], "__spec__", None)
    assert "not in a module that another process could import" in stays(call())
    assert to_plain(call()) is None


def test_a_module_that_was_changed_and_reloaded_here_is_reloaded_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "changing_layers.py"
    path.write_text(SOURCE.format(result="x"))
    here = importlib.import_module("changing_layers")
    old = to_plain(call(here.converter.registration))
    path.write_text(SOURCE.format(result="ctx.network.add_identity(x)"))
    importlib.invalidate_caches()
    fresh = importlib.util.module_from_spec(importlib.util.spec_from_file_location("elsewhere", path))
    fresh.__spec__.loader.exec_module(fresh)
    new = {**old, "converter": [*old["converter"][:3], *digests(fresh.converter.registration)]}
    assert new["converter"] != old["converter"]
    assert from_plain(new).registration.tensorrt.__code__.co_code == fresh.layers.__code__.co_code
    with pytest.raises(LookupError, match=r"changing_layers, imported anew, has no converter of aten::relu"):
        from_plain({**old, "converter": [*old["converter"][:3], "0" * 64]})
    del sys.modules["changing_layers"]


def digests(registration):
    return _key(registration)[3:]
