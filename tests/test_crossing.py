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


class Around(nn.Module):
    """Attributes of every plain kind, a buffer, an absent bias and a module inside."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner or nn.Linear(2, 3, bias=False)
        self.eps, self.sizes, self.mode = 1e-6, (2, 3), {"kind": torch.float16}
        self.register_buffer("mean", torch.ones(3))

    def forward(self, x):
        return self.inner(x) * self.mean + self.eps


def with_attribute(name, value):
    module = Around()
    setattr(module, name, value)
    return module


def test_a_module_crosses_with_its_attributes_and_the_names_of_its_tensors():
    module, x = Around().eval(), torch.randn(4, 2)
    state = {"inner.weight": Slot(1), "mean": Slot(2)}
    crossed = json.loads(json.dumps(to_plain(call(args=(Slot(0),), module=module, state=state))))
    there = from_plain(crossed)
    assert type(there.module) is Around and not there.module.training and there.module.inner.bias is None
    assert (there.module.eps, there.module.sizes, there.module.mode) == (1e-6, (2, 3), {"kind": torch.float16})
    view, argument = there.bind([x, "the weight", "the mean"])[0]
    assert (view.inner.weight, view.mean, view.sizes, argument) == ("the weight", "the mean", (2, 3), x)
    values = [x, module.inner.weight, module.mean]
    assert torch.equal(there.run(Around.forward, values), module(x))


def test_what_cannot_cross_says_why(monkeypatch):
    class Local(nn.Module):
        pass

    inside = ttb.converter("own_layers::rms", register=False)(lambda x, weight, eps: x)
    assert "not to be found in test_crossing by name" in stays(call(inside.registration))
    assert "module.hook is a builtins.function" in stays(call(module=with_attribute("hook", lambda: 0)))
    assert "module.inner is a test_crossing.test_what_" in stays(call(module=Around(Local())))
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
