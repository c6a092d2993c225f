"""Converters' TensorRT layers on the ONNX route: where they are put, what they are given, and mistakes told by name.
tests/test_layers_gpu.py runs them."""

from __future__ import annotations

import dataclasses
import functools

import own_layers
import pytest
import torch
from own_layers import CONVERTERS, Model, Outer, Several, several_layers

import torchtrt_bridge as ttb
from torchtrt_bridge.backends.onnx_graph import serialize, to_onnx
from torchtrt_bridge.backends.onnx_layers import Layers
from torchtrt_bridge.backends.onnx_markers import mark, place_markers
from torchtrt_bridge.capture import capture
from torchtrt_bridge.lowering import lower, serving
from torchtrt_bridge.registry import converter
from torchtrt_bridge.trt.flavor import flavor
from torchtrt_bridge.trt.request import Failure, HandwrittenFailed

pytest.importorskip("tensorrt_rtx")
MADE = "converters made the TensorRT layers of own_layers::rms (2 times), own_layers::attention (1 time)"


def build(model, inputs, precision="fp32", converters=CONVERTERS, **options):
    return ttb.build(model.eval(), inputs, precision, backend="onnx", hybrid=False, converters=converters, **options)


class Parsed:
    """A model's network after its layers were put in, which is never built."""

    def __init__(self, proto, layers_of_calls, initializers=None):
        bound = flavor()
        self.builder = bound.trt.Builder(bound.logger)
        self.network = self.builder.create_network(0)
        self.parser = bound.trt.OnnxParser(self.network, bound.logger)
        assert self.parser.parse(proto)
        self.alive = layers_of_calls(bound, self.network, {})

    @property
    def layers(self):
        """By name."""
        layers = (self.network.get_layer(index) for index in range(self.network.num_layers))
        return {layer.name: layer for layer in layers}

    def producer(self, tensor):
        """The name of the layer that makes ``tensor``."""
        return next(name for name, layer in self.layers.items() if layer.get_output(0) == tensor)


@functools.cache
def marked_model():
    """The bytes of an ONNX model with markers, and the layers to put in: what a build is given."""
    registered = converter.snapshot(CONVERTERS)
    captured = capture(Model().eval(), torch.randn(2, 3, 8), dynamic_batch=(1, 2, 4), converters=registered)
    lowered = lower(captured, registered)
    program, marked = mark(serving(lowered, lambda call: True))
    model = to_onnx(program, ["x"], ["out", "normal"], 23)
    placed = place_markers(model, marked)
    return serialize(model), placed


@pytest.fixture(autouse=True)
def _nothing_seen():
    own_layers.seen.clear()


def test_the_results_are_read_from_the_forms_layers_and_those_read_the_calls_arguments():
    proto, placed = marked_model()
    parsed = Parsed(proto, Layers(placed))
    layers = parsed.layers
    for call, place in enumerate(("first/rms", "attention/attention", "last/rms")):
        result = layers[f"torchtrt_bridge.call.{call}/result.0"]
        assert parsed.producer(result.get_input(0)).startswith(f"{place}."), place
    outputs = {parsed.network.get_output(i).name: parsed.network.get_output(i) for i in range(2)}
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {"out": (-1, 3, 8), "normal": (-1, 3, 8)}
    assert layers["first/rms.elementwise"].get_input(0).name == "x"
    assert "first/rms.unary" in layers and "last/rms.unary" in layers and "attention/attention.softmax" in layers
    assert own_layers.seen == ["first float32[-1, 3, 8] eps 1e-06", "last float32[-1, 3, 8] eps 1e-06"]


def test_no_stand_in_is_left_before_a_result():
    """Walk back from the results: every layer on the way is a real one."""
    proto, placed = marked_model()
    parsed = Parsed(proto, Layers(placed))
    made_by = {layer.get_output(i).name: layer for layer in parsed.layers.values() for i in range(layer.num_outputs)}
    waiting, reached = [parsed.network.get_output(i).name for i in range(2)], set()
    while waiting:
        layer = made_by.get(waiting.pop())
        if layer is not None and layer.name not in reached:
            reached.add(layer.name)
            inputs = (layer.get_input(i) for i in range(layer.num_inputs))
            waiting += [tensor.name for tensor in inputs if tensor is not None]
    assert len(reached) > 20 and not [name for name in reached if "stand_in" in name]


def test_a_plan_is_built_in_a_child_which_imports_the_converters_module():
    fast = build(Model(), torch.randn(2, 3, 8), dynamic_batch=(1, 2, 4))
    assert MADE in fast.report.notes and not any("in this process" in note for note in fast.report.notes)
    assert not own_layers.seen, "the form ran here"


@pytest.mark.parametrize(("precision", "dynamic"), [("fp16", None), ("bf16", (1, 2, 4))])
def test_a_form_that_cannot_cross_is_built_here_and_the_report_says_so(precision, dynamic):
    converters = _copies()
    fast = build(Model(), torch.randn(2, 3, 8), precision, converters, dynamic_batch=dynamic)
    dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    rows = 2 if dynamic is None else -1
    assert own_layers.seen == [f"first float32[{rows}, 3, 8] eps 1e-06", f"last {dtype}[{rows}, 3, 8] eps 1e-06"]
    assert MADE in fast.report.notes
    assert any("built in this process" in note and "own_layers::rms" in note for note in fast.report.notes)


def _copies():
    """The converters anew, out of reach of any name."""
    made = []
    for each in CONVERTERS:
        registration = each.registration
        copy = ttb.converter(registration.target.name, register=False)(
            lambda *args, form=registration.aten: form(*args)
        )
        copy.tensorrt(lambda *args, form=registration.tensorrt: form(*args))
        made.append(copy)
    return made


def test_a_module_comes_with_its_parameters_and_attributes_and_a_size_as_a_tensor():
    local = ttb.converter(Several, register=False)(lambda module, x, rows: Several.forward(module, x, rows))
    found = {}

    @local.tensorrt
    def _(ctx, module, x, rows):
        found.update(weight=ctx.weights(module.inner.weight), rows=tuple(rows.shape))
        return several_layers(ctx, module, x, rows)

    model = Outer()
    build(model, torch.randn(2, 4), converters=[local], dynamic_batch=(1, 2, 4))
    assert own_layers.seen == ["several offset 2.5 weight [4, 4]"]
    assert torch.equal(found["weight"], model.several.inner.weight) and found["rows"] == (1,)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (lambda ctx, x, *_: [x, x], "there are 2 results, and there must be 1"),
        (lambda ctx, x, *_: ctx.cast(x, torch.float16), r"is float16\[-1, 3, 8\], and must be float32\[-1, 3, 8\]"),
        (lambda ctx, x, *_: ctx.reshape(x, [-1, 8]), r"is float32\[-1, 8\], and must be float32\[-1, 3, 8\]"),
        (lambda ctx, x, *_: None, "is a NoneType, not a tensor"),
        (lambda ctx, x, *_: ctx.missing, "AttributeError: 'ConversionContext' object has no attribute 'missing'"),
        (lambda ctx, x, w, *_: ctx.network.add_elementwise(x, w, ctx.trt.ElementWiseOperation.SUM), "nbDims"),
    ],
)
def test_a_forms_mistake_is_told_by_converter_and_place(form, says):
    proto, placed = marked_model()
    with pytest.raises(HandwrittenFailed, match=rf"own_layers::rms \(in first\)(.|\n)*{says}"):
        Parsed(proto, Layers({0: _with_form(placed[0], form)}))


def _with_form(marked, form):
    registration = dataclasses.replace(marked.call.registration, tensorrt=form)
    return dataclasses.replace(marked, call=dataclasses.replace(marked.call, registration=registration))


def test_a_marker_that_the_parser_lost_is_an_error():
    proto, placed = marked_model()
    with pytest.raises(Failure, match="made no layer of 'torchtrt_bridge.call.7/argument.0'"):
        Parsed(proto, Layers({7: placed[0]}))
