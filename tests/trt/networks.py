"""Small ONNX models for the tests of ``torchtrt_bridge.trt``."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def mlp(width: int = 64, depth: int = 2) -> onnx.ModelProto:
    """``x [batch, width]`` through ``depth`` times MatMul and Relu. The batch is dynamic."""
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i in range(depth):
        weight = random.standard_normal((width, width), dtype=np.float32) / np.float32(width**0.5)
        weights.append(numpy_helper.from_array(weight, f"layers.{i}.weight"))
        nodes.append(helper.make_node("MatMul", [value, f"layers.{i}.weight"], [f"h{i}"], name=f"layers.{i}/matmul"))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"], name=f"layers.{i}/relu"))
        value = f"r{i}"
    return _model(nodes, [_float("x", ["batch", width])], [_float(value, ["batch", width])], weights)


def mlp_profile(width: int = 64) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    return {"x": ((1, width), (4, width), (8, width))}


def convolutions(depth: int, channels: int = 48) -> onnx.ModelProto:
    """``x [1, 3, 64, 64]`` through ``depth`` convolutions, each unlike the one before."""
    random = np.random.default_rng(0)
    nodes, weights, value, channels_in = [], [], "x", 3
    for i in range(depth):
        kernel, channels_out = (1, 3, 5, 7)[i % 4], channels + 8 * (i % 5)
        weight = random.standard_normal((channels_out, channels_in, kernel, kernel), dtype=np.float32) / 50
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[kernel // 2] * 4))
        nodes.append(helper.make_node(("Relu", "Sigmoid", "Tanh")[i % 3], [f"c{i}"], [f"a{i}"], f"act{i}"))
        value, channels_in = f"a{i}", channels_out
    return _model(nodes, [_float("x", [1, 3, 64, 64])], [_float(value, None)], weights)


def attention() -> onnx.ModelProto:
    """The Attention operator in float32, for which TensorRT has no fused kernel."""
    values = [_float(name, [1, 4, 16, 32]) for name in "qkvy"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="encoder.attention/attention")
    return _model([node], values[:3], values[3:], opset=23)


def unknown_operators() -> onnx.ModelProto:
    """Two operators that no parser knows, among others that it does."""
    chain = [("Relu", "enc/first"), ("Frobnicate", "enc.1/frob"), ("Relu", "enc/between"), ("Twiddle", "enc.2/twiddle")]
    nodes = [helper.make_node(op, [f"v{i}"], [f"v{i + 1}"], name=name) for i, (op, name) in enumerate(chain)]
    return _model(nodes, [_float("v0", [2, 3])], [_float(f"v{len(chain)}", [2, 3])])


def without_weights(model: onnx.ModelProto) -> tuple[bytes, dict[str, np.ndarray]]:
    """The model's bytes without its weights, and the weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {}
    for tensor in copy.graph.initializer:
        weights[tensor.name] = numpy_helper.to_array(tensor).copy()
        tensor.ClearField("raw_data")
    return copy.SerializeToString(), weights


def _float(name: str, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
