"""How much matrix and convolution work a network has, in which precision, and what the built engine makes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from torchtrt_bridge.errors import PrecisionNotApplied
from torchtrt_bridge.trt import engine_layers
from torchtrt_bridge.trt.build import build
from torchtrt_bridge.trt.builder import build_plan
from torchtrt_bridge.trt.flavor import flavor
from torchtrt_bridge.trt.request import Request
from torchtrt_bridge.trt.work import work_of

bound = flavor()
builds = pytest.mark.skipif(
    not (bound.can_build_without_gpu or torch.cuda.is_available()), reason="this TensorRT builds only on a GPU"
)


def model(nodes, inputs, outputs, weights=(), kind=TensorProto.FLOAT16, opset=23):
    ends = [
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in end.items()] for end in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights]
    graph = helper.make_graph(nodes, "g", *ends, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


def quantized_linear(rows="rows", cast=False, dequantize=True):
    """An int8 product of (rows, 64) and (64, 128), with or without a cast behind its Q/DQ."""
    scale, node = np.float32, helper.make_node
    weights = [
        ("w", np.random.RandomState(0).randint(-127, 127, (64, 128)).astype(np.int8)),
        ("ws", np.full(128, 0.01, scale)), ("wz", np.zeros(128, np.int8)),
        ("xs", np.array(0.02, scale)), ("xz", np.array(0, np.int8)),
    ]  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="fc/q"),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="fc/dq"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="fc/wdq", axis=1),
    ]
    operands = ["xd" if dequantize else "x", "wd"]
    if cast:
        nodes += [node("Cast", [name], [f"{name}h"], to=TensorProto.FLOAT16, name=f"fc/{name}") for name in operands]
        operands = [f"{name}h" for name in operands]
    nodes += [node("MatMul", operands, ["m"], name="fc/MatMul"), node("Cast", ["m"], ["y"], to=1, name="fc/out")]
    return model(nodes, {"x": [rows, 64]}, {"y": [rows, 128]}, weights, TensorProto.FLOAT)


def parsed(data, profile=None):
    """The work of a network that is parsed and not built."""
    builder = bound.trt.Builder(bound.logger)
    flag = 1 << int(bound.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if bound.has_strongly_typed_flag else 0
    network = builder.create_network(flag)
    parser = bound.trt.OnnxParser(network, bound.logger)
    assert parser.parse(data)
    return work_of(bound.trt, network, profile or {})


@pytest.mark.parametrize(
    ("node", "inputs", "outputs", "flops"),
    [
        (
            helper.make_node("MatMul", ["a", "b"], ["y"]),
            {"a": [2, 3, 5], "b": [5, 7]}, {"y": [2, 3, 7]}, 2 * 2 * 3 * 5 * 7,
        ),
        (
            helper.make_node("Gemm", ["a", "b"], ["y"], transA=1),
            {"a": [5, 3], "b": [5, 7]}, {"y": [3, 7]}, 2 * 3 * 5 * 7,
        ),
        (
            helper.make_node("Einsum", ["a", "b"], ["y"], equation="bik,bjk->bij"),
            {"a": [2, 3, 5], "b": [2, 7, 5]}, {"y": [2, 3, 7]}, 2 * 2 * 3 * 5 * 7,
        ),
        (
            helper.make_node("Conv", ["a", "b"], ["y"], pads=[1, 1, 1, 1], group=2),
            {"a": [2, 4, 9, 9], "b": [6, 2, 3, 3]}, {"y": [2, 6, 9, 9]}, 2 * (2 * 6 * 9 * 9) * 2 * 9,
        ),
        (
            helper.make_node("ConvTranspose", ["a", "b"], ["y"], strides=[2, 2]),
            {"a": [2, 4, 9, 9], "b": [4, 6, 2, 2]}, {"y": [2, 6, 18, 18]}, 2 * (2 * 4 * 9 * 9) * 6 * 4,
        ),
        (
            helper.make_node("Attention", ["a", "b", "c"], ["y"]),
            {"a": [1, 2, 16, 32], "b": [1, 2, 24, 32], "c": [1, 2, 24, 32]}, {"y": [1, 2, 16, 32]},
            2 * (2 * 2 * 16 * 24 * 32),
        ),
    ],
    ids=lambda value: value.op_type if hasattr(value, "op_type") else "",
)  # fmt: skip
def test_operations_are_counted(node, inputs, outputs, flops):
    (found,) = parsed(model([node], inputs, outputs))
    assert (found.flops, found.typed, found.built) == (flops, "fp16", None)


def test_a_dynamic_size_counts_as_usual():
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    data = model([node], {"a": ["n", 3, 5], "b": [5, 7]}, {"y": ["n", 3, 7]})
    (found,) = parsed(data, {"a": ((1, 3, 5), (4, 3, 5), (8, 3, 5))})
    assert found.flops == 4 * 2 * 3 * 5 * 7


def test_a_product_of_dequantized_operands_is_typed_by_what_they_were():
    (found,) = parsed(quantized_linear(8))
    assert (found.typed, found.hindrance) == ("int8", "")
    (found,) = parsed(quantized_linear(8, cast=True))
    assert found.typed == "int8" and "a cast stands between" in found.hindrance
    (found,) = parsed(quantized_linear(8, dequantize=False))
    assert (found.typed, found.hindrance) == ("fp32", "its operands are fp32 and int8")


@builds
@pytest.mark.parametrize("dequantize", [True, False])
def test_the_built_engine_has_the_last_word(dequantize):
    plan = build_plan(Request(quantized_linear(dequantize=dequantize), {"x": ((1, 64), (8, 64), (16, 64))}))
    (found,) = plan.work
    assert found.flops == 2 * 8 * 64 * 128
    assert (found.typed, found.built) == (("int8", "int8") if dequantize else ("fp32", "fp32"))


@builds
@pytest.mark.parametrize("groups", [1, 32], ids=["dense", "depthwise"])
def test_an_int8_convolution_is_one_or_is_refused(groups):
    """RTX 1.6 has no such kernel, and 1.7 has."""
    node, width, scale = helper.make_node, 32, np.float32
    weights = [
        ("w", np.random.RandomState(0).randint(-127, 127, (width, width // groups, 3, 3)).astype(np.int8)),
        ("ws", np.full(width, 0.01, scale)), ("wz", np.zeros(width, np.int8)),
        ("xs", np.array(0.02, scale)), ("xz", np.array(0, np.int8)),
    ]  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        node("Conv", ["xd", "wd"], ["y"], name="stem/conv", group=groups, pads=[1, 1, 1, 1]),
    ]
    shape = {"x": [1, width, 16, 16]}, {"y": [1, width, 16, 16]}
    request = Request(model(nodes, *shape, weights, TensorProto.FLOAT, opset=19))
    try:
        (found,) = build(request, isolate=True).work
    except PrecisionNotApplied as error:
        assert "no int8 kernel for the convolution stem/conv" in str(error) and "nn.Conv2d: 'fp16'" in str(error)
    else:
        assert (found.typed, found.built) == ("int8", "int8")


def told(name, shape, dtype):
    """A tensor as a build's log tells of it."""
    form = "Format: (Linear) Row major linear format }"
    return f"{{ Name: {name}, Dimensions: [{shape}], Strides: [1], StrideOrder: [0], Datatype: {dtype}, {form}"


LOG = f"""Layers:
Name: __myl_CastMul_myl0_1, LayerType: kgen, Inputs: [ {told("x", "-1,64", "Float")}], Constants: [], \
Outputs: [ {told("q", "-1,64", "Int8")}], TacticName: , StreamId: 0, Metadata: [ONNX Layer: fc/q]
Name: fc/MatMul_myl0_2, LayerType: gemm, Inputs: [ {told("q", "-1,64", "Int8")}], \
Constants: [ {told("w", "64,128", "Int8")}, {told("alpha", "1", "Float")}], \
Outputs: [ {told("y", "-1,128", "Half")}], TacticName: stub, StreamId: 0, \
Metadata: [ONNX Layer: fc/MatMul]\x1f[ONNX Layer: fc/dq]__gemm

I/O Tensors:
 Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,64], Location: Device, IsShapeInferenceIO: false
"""


def test_the_layers_of_a_build_log():
    kernel, product = engine_layers.from_log(LOG)
    assert not kernel.multiplies
    assert product.multiplies and (product.kind, product.precision) == ("gemm", "int8")
    assert product.metadata == ("[ONNX Layer: fc/MatMul]", "[ONNX Layer: fc/dq]")


def shown(kind, *shape, key="Datatype"):
    """A tensor as an inspector shows it."""
    return {key: kind, "Dimensions": list(shape)}


OLD = "Format/Datatype"
CHANNELS = "Channel major FP16 format where channel % 8 == 0"
VECTORS = "Thirty-two wide channel vectorized row major Int8 format"


@pytest.mark.parametrize(
    ("kernel", "precision"),
    [
        ({"Inputs": [shown("Int8", 8, 64)], "Constants": [shown("Int8", 64, 9), shown("Float", 1)]}, "int8"),
        ({"Inputs": [shown("Half", 8, 64)], "Constants": [shown("Int8", 64, 9)]}, "fp16"),
        ({"Inputs": [shown(VECTORS, 1, 32, key=OLD)], "Weights": {"Type": "Half", "Count": 72}}, "fp16"),
        ({"Inputs": [shown(CHANNELS, 1, 8, 4, 4, key=OLD)], "Weights": {"Type": "Half", "Count": 72}}, "fp16"),
        ({"Inputs": [shown(VECTORS, 1, 32, key=OLD)], "Weights": {"Type": "Int8", "Count": 72}}, "int8"),
        ({"Inputs": [shown("FP8", 8, 64), shown("FP8", 64, 8)]}, "fp8"),
        ({"Inputs": [shown("BFloat16", 8, 64), shown("BFloat16", 64, 8)]}, "bf16"),
        ({"Inputs": []}, ""),
    ],
)
def test_the_layers_of_an_inspector(kernel, precision):
    layer = {"Name": "fc", "LayerType": "CaskGemmMatrixMultiply", "Metadata": "[ONNX Layer: fc]__gemm", **kernel}
    (found,) = engine_layers.from_inspector(json.dumps({"Layers": [layer]}))
    assert (found.precision, found.multiplies, found.metadata) == (precision, True, ("[ONNX Layer: fc]",))


@pytest.mark.parametrize("text", ["", "{", '{"Layers": ["fc", "relu"]}', "[]"])
def test_an_inspector_without_details_says_nothing(text):
    assert engine_layers.from_inspector(text) == []
