"""Q/DQ operators in ONNX, as TensorRT's parser fuses them: scales in float32, the dtype of what is dequantized said by
the operator, and 4-bit weights stored in 4 bits.

torch's own forms cast a dequantized tensor afterwards, which puts a layer between it and the product that reads it.
Before opset 23, ``QuantizeLinear`` takes the dtype of its scale alone and ``DequantizeLinear`` gives that, so there the
casts are needed, and float8 is not there at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from ..errors import ConversionFailed
from ..fx_nodes import retyped
from ..program_graph import rebuild
from ..quantization.graph import FLOAT8, is_dequantize, is_quantize

if TYPE_CHECKING:
    import onnx_ir as ir

_ops = torch.ops.quantized_decomposed


def quantized_translations(program: ExportedProgram, opset: int) -> dict[Any, Callable[..., Any]]:
    """torch.onnx's ``custom_translation_table`` for the Q/DQ operators of ``program``; empty where it has none.

    Raises:
        ConversionFailed: float8, or a scale for each group of weights, in an opset that lacks it.
    """
    found = [node for node in program.graph.nodes if is_quantize(node) or is_dequantize(node)]
    if not found:
        return {}
    if opset < 23:
        for node in found:
            grouped = node.target is _ops.dequantize_per_channel_group.default
            if grouped or torch.float8_e4m3fn in node.args:
                what = "a scale for each group of weights" if grouped else "float8"
                raise ConversionFailed(f"ONNX opset {opset} has no {what}.")
        from onnxscript import opset18 as op
    else:
        from onnxscript import opset23 as op
    return _forms(op, opset >= 23)


def with_unsigned_activations(program: ExportedProgram) -> ExportedProgram:
    """``program`` with int8 activations as uint8 around 128: the same numbers, in the only form that ONNX Runtime's
    kernels for x86 multiply."""
    graph = copy.deepcopy(program.graph)
    for node in graph.find_nodes(op="call_function", target=_ops.quantize_per_tensor.default):
        *_, zero_point, low, high, dtype = node.args
        if dtype == torch.int8 and all(user.target is _ops.dequantize_per_tensor.default for user in node.users):
            for each in (node, *node.users):
                each.args = (*each.args[:2], zero_point + 128, low + 128, high + 128, torch.uint8)
            node.meta["val"] = retyped(node.meta["val"], torch.uint8)
    return rebuild(program, graph, {})


def _forms(op: Any, typed: bool) -> dict[Any, Callable[..., Any]]:
    """The table in the operators of one opset. ``typed``: they take and give dtypes other than the scale's."""
    import onnx_ir as ir

    single = ir.DataType.FLOAT

    def constant(value: Any, dtype: int) -> Any:
        return op.Constant(value=ir.tensor(value, dtype=ir.DataType(dtype)))

    def quantize(x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: int) -> Any:
        x = x if typed else op.Cast(x, to=single)
        return op.QuantizeLinear(x, constant(scale, single), constant(zero_point, dtype))

    def dequantize(x: Any, scale: Any, out_dtype: int, zero_point: Any = None, **axis: int) -> Any:
        given = (x, scale) if zero_point is None else (x, scale, zero_point)
        if typed:
            return op.DequantizeLinear(*given, output_dtype=out_dtype, **axis)
        return op.Cast(op.DequantizeLinear(*given, **axis), to=out_dtype)

    def per_tensor(
        x: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: int, out_dtype: int = single
    ) -> Any:
        return dequantize(x, constant(scale, single), out_dtype, constant(zero_point, dtype) if zero_point else None)

    def per_channel(
        x: Any, scale: Any, zeros: Any, axis: int, quant_min: int, quant_max: int, dtype: int, out_dtype: int = single
    ) -> Any:
        return dequantize(x, scale, out_dtype, axis=axis)

    def per_group(
        x: Any, scale: Any, zeros: Any, quant_min: int, quant_max: int, dtype: int, group_size: int, output_dtype: int
    ) -> Any:
        return dequantize(x, scale, output_dtype, axis=1, block_size=group_size)

    def float8(x: Any, scale: Any) -> Any:
        return quantize(x, scale, 0.0, 0, 0, ir.DataType.FLOAT8E4M3FN)

    return {
        FLOAT8: float8,
        _ops.quantize_per_tensor.default: quantize,
        _ops.dequantize_per_tensor.default: per_tensor,
        _ops.dequantize_per_channel.default: per_channel,
        _ops.dequantize_per_channel_group.default: per_group,
    }


def pack_int4(model: ir.Model) -> None:
    """Store in 4 bits the weights that have a scale for each group of them: in ``model``, an int8 tensor holds each.

    Their scales take the dtype of what is dequantized: TensorRT for RTX 1.6 knows no other for 4 bits.
    """
    import onnx_ir as ir

    for node in model.graph:
        block = node.attributes.get("block_size")
        if node.op_type != "DequantizeLinear" or block is None or not block.as_int():
            continue
        weight, scale = node.inputs[:2]
        if weight is None or weight.const_value is None or weight.dtype != ir.DataType.INT8:
            continue
        wanted = ir.DataType(node.attributes["output_dtype"].as_int())
        for value, dtype in ((weight, ir.DataType.INT4), (scale, wanted)):
            assert value is not None and value.const_value is not None
            numbers = value.const_value.numpy().astype(dtype.numpy())
            value.const_value = ir.tensor(numbers, dtype=dtype, name=value.name)
            value.dtype = dtype
