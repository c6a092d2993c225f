"""Which function makes the TensorRT layers of a call, by the TensorRT in use; plugin forms where there can be none."""

from __future__ import annotations

import dataclasses
import types

import own_layers
import pytest
import torch
from own_layers import Norm

import torchtrt_bridge as ttb
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.backends.onnx import OnnxBackend
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import ConversionFailed
from torchtrt_bridge.layer_forms import layer_form, refusal
from torchtrt_bridge.lowering import lower
from torchtrt_bridge.registry import converter
from torchtrt_bridge.tools.points import observe
from torchtrt_bridge.trt.conversion import ConversionContext
from torchtrt_bridge.trt.flavor import Flavor

FULL = Flavor("tensorrt", "10.16", types.SimpleNamespace(INetworkDefinition=type("N", (), {"add_plugin": 1})), None)
RTX = Flavor("tensorrt_rtx", "1.6", types.SimpleNamespace(INetworkDefinition=type("N", (), {})), None)


def registration(**forms):
    return dataclasses.replace(own_layers.rms_converter.registration, **{"tensorrt": None, **forms})


def layers(ctx, *arguments):
    return None


def plugin(ctx, *arguments):
    return ctx.network.add_plugin(ctx.plugins.op.own_layers.rms(*arguments), aot=True)


@pytest.mark.parametrize(
    ("forms", "full", "rtx", "why"),
    [
        ({"tensorrt": layers}, layers, layers, None),
        ({"tensorrt": layers, "plugin": plugin}, plugin, layers, None),
        ({"plugin": plugin}, plugin, None, "makes a plugin, which tensorrt_rtx does not have"),
        ({"tensorrt": layers, "flavours": ("tensorrt",)}, layers, None, "is for tensorrt, and tensorrt_rtx is in use"),
        ({}, None, None, None),
    ],
)
def test_the_flavour_decides_and_says_why_not(forms, full, rtx, why):
    one = registration(**forms)
    assert (layer_form(one, FULL), layer_form(one, RTX)) == (full, rtx)
    assert refusal(one, FULL) is None
    assert (refusal(one, RTX) is None) if why is None else (why in refusal(one, RTX))


def test_plugins_are_refused_by_name_where_there_are_none():
    with pytest.raises(AttributeError, match="tensorrt_rtx has no plugins"):
        _ = ConversionContext(RTX, None).plugins


def test_a_plugin_form_alone_serves_no_route_of_rtx_and_the_reason_is_named():
    pytest.importorskip("tensorrt_rtx")
    with_plugin = ttb.converter("own_layers::rms", register=False)
    with_plugin.plugin(plugin)
    registered = converter.snapshot([with_plugin])
    model, x = Norm(4).eval(), torch.randn(2, 4)
    captured = lower(capture(model, x, converters=registered), registered)
    (call,) = captured.calls.values()
    served = OnnxBackend().served(call, Place(torch.device("cpu"), "sm89"))
    assert served.form is None and "own_layers::rms makes a plugin, which tensorrt_rtx does not have" in served.reason
    with pytest.raises(ConversionFailed, match=r"own_layers::rms makes a plugin, which .* \(in the top module\)"):
        ttb.build(model, x, backend="onnx", hybrid=False, converters=[with_plugin])


def test_results_observed_beside_a_models_own_are_not_looked_for_among_the_forms():
    registered = converter.snapshot(own_layers.CONVERTERS)
    captured = lower(capture(Norm(4).eval(), torch.randn(2, 4), converters=registered), registered)
    assert captured.calls
    name = next(node.name for node in captured.program.graph.nodes if node.op == "call_function")
    observed = observe(captured, [name])
    assert (observed.formed, dict(observed.calls)) == (None, {})
    assert len(observed.signature.outputs) == 2
