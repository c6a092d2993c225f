"""Converters' TensorRT layers on the torch2trt route: operators, functions and modules, in the stand-in's trace.
test_torch2trt_gpu.py runs one."""

from __future__ import annotations

from pathlib import Path

import own_layers
import pytest
import torch
from comparing import nothing_changes
from own_layers import Norm, attention, rms_converter, wrong_converter
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as ttb
from torchtrt_bridge.backends import torch2trt_library
from torchtrt_bridge.errors import ConverterFailed, UnsupportedLayer

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "stand_in"))
    monkeypatch.setattr(torch2trt_library, "_loaded", [])
    own_layers.seen.clear()


def build(model, *inputs, converters, **options):
    return ttb.build(model.eval(), inputs, backend="torch2trt", converters=converters, **options)


def twice(x: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.hardshrink(x) * factor  # which torch2trt has no converter for


class Gate(nn.Module):
    def __init__(self, power: float) -> None:
        super().__init__()
        self.bias, self.power = nn.Parameter(torch.arange(4.0)), power

    def forward(self, x):
        return torch.special.erfcx(x + self.bias) ** self.power


class Model(nn.Module):
    """Layers that torch2trt's stand-in has, around three that it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.gate = Norm(4), nn.Linear(4, 4), Gate(2.0)

    def forward(self, x):
        return F.relu(self.gate(twice(self.linear(self.norm(x)), 3.0)))


@pytest.fixture
def converters():
    of_twice = ttb.converter(twice, register=False)(lambda x, factor: torch.hardshrink(x) * factor)
    of_gate = ttb.converter(Gate, register=False)(lambda module, x: Gate.forward(module, x))

    @of_twice.tensorrt
    def _(ctx, x, factor):
        own_layers.seen.append(f"{ctx.place or 'the model'} factor {factor}")
        product = ctx.trt.ElementWiseOperation.PROD
        return ctx.network.add_elementwise(*ctx.broadcast(x, ctx.constant(factor)), product)

    @of_gate.tensorrt
    def _(ctx, module, x):
        own_layers.seen.append(f"{ctx.place} power {module.power} bias {ctx.weights(module.bias).tolist()}")
        return ctx.network.add_elementwise(*ctx.broadcast(x, module.bias), ctx.trt.ElementWiseOperation.SUM)

    return [rms_converter, of_twice, of_gate]


@pytest.mark.parametrize("dynamic", [None, (1, 2, 8)])
def test_operators_functions_and_modules_become_the_forms_layers(converters, dynamic):
    model, x = Model(), torch.randn(2, 4)
    with nothing_changes(model.eval(), x):
        fast = build(model, x, converters=converters, dynamic_batch=dynamic)
    (note,) = (note for note in fast.report.notes if "TensorRT layers of" in note)
    for target in ("own_layers::rms", "test_torch2trt_forms.twice", "test_torch2trt_forms.Gate"):
        assert f"{target} (1 time)" in note
    rows = 2 if dynamic is None else -1
    assert own_layers.seen == [
        f"norm float32[{rows}, 4] eps 1e-06",
        "the model factor 3.0",
        "gate power 2.0 bias [0.0, 1.0, 2.0, 3.0]",
    ]


def test_without_its_form_a_layer_is_unsupported_as_ever(converters):
    with pytest.raises(UnsupportedLayer, match=r"torch2trt has no converter for own_layers\.rms in module 'norm'"):
        build(Model(), torch.randn(2, 4), converters=converters[1:])


def test_a_call_that_the_converter_rejects_is_torch2trts():
    rejecting = ttb.converter(twice, register=False, when=lambda call: call["factor"] > 5 or "too small")(
        lambda x, factor: torch.hardshrink(x) * factor
    )
    rejecting.tensorrt(lambda ctx, x, factor: x)

    class Both(nn.Module):
        def forward(self, x):
            return F.relu(twice(x, 6.0)), twice(x, 2.0)

    with pytest.raises(UnsupportedLayer, match="no converter for .*hardshrink"):
        build(Both(), torch.randn(2, 4), converters=[rejecting])


def test_a_forms_mistake_is_told_by_converter_and_place():
    with pytest.raises(ConverterFailed, match=r"own_layers::rms \(in norm\).*is float32\[8\], and must be"):
        build(Model(), torch.randn(2, 4), converters=[wrong_converter])


def test_what_feeds_a_form_must_be_converted():
    class Shrunk(nn.Module):
        def forward(self, query, key, value, scale):
            return torch.ops.own_layers.attention(F.hardshrink(query), key, value, scale)

    inputs = (*(torch.randn(1, 2, 3, 4) for _ in range(3)), torch.ones(()))
    converter = ttb.converter("own_layers::attention", register=False)(attention)
    converter.tensorrt(lambda ctx, query, key, value, scale: query)
    with pytest.raises(UnsupportedLayer, match="no converter for .*hardshrink"):
        build(Shrunk(), *inputs, converters=[converter])
