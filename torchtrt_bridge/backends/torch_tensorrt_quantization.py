"""Q/DQ operators as TensorRT's layers on the Torch-TensorRT route, whose own converters know NVIDIA's ModelOpt only.

Its lowering computes what constants alone determine, quantized weights among them: they would be float32 again, and the
layers that read them not quantized. So it is told to leave them alone.

Like :mod:`.torch_tensorrt_network`, only the process that holds Torch-TensorRT imports this file.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Node
from torch_tensorrt.dynamo.conversion import dynamo_tensorrt_converter
from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_ATEN_CONVERTERS
from torch_tensorrt.dynamo.lowering.passes.constant_folding import _TorchTensorRTConstantFolder

from ..quantization.graph import FLOAT8, is_dequantize, is_quantize
from ..trt.flavor import Flavor

_ops = torch.ops.quantized_decomposed
_TYPES = {
    torch.int8: "int8", torch.float8_e4m3fn: "fp8", torch.float32: "float32", torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}  # fmt: skip


@contextlib.contextmanager
def quantized(flavor: Flavor) -> Iterator[None]:
    """Within, Torch-TensorRT's registry has converters for Q/DQ. Their weights live as long."""
    layers = _Layers(flavor)
    table = {
        FLOAT8: layers.quantize_float8,
        _ops.quantize_per_tensor.default: layers.quantize,
        _ops.dequantize_per_tensor.default: layers.dequantize_per_tensor,
        _ops.dequantize_per_channel.default: layers.dequantize_per_channel,
    }
    with contextlib.ExitStack() as undo:
        for target, convert in table.items():
            dynamo_tensorrt_converter(target, supports_dynamic_shapes=True)(convert)
            undo.callback(operator.delitem, DYNAMO_ATEN_CONVERTERS, target)
        yield


def keep_quantized_weights() -> None:
    """Have Torch-TensorRT's constant folding leave Q/DQ alone, from now on."""
    usual = _TorchTensorRTConstantFolder.is_impure

    def is_impure(self: Any, node: Node) -> bool:
        return is_quantize(node) or is_dequantize(node) or usual(self, node)

    _TorchTensorRTConstantFolder.is_impure = is_impure  # type: ignore[method-assign]


class _Layers:
    """The converters; each is called with the arguments of its operator."""

    def __init__(self, flavor: Flavor):
        self._trt = flavor.trt
        self._held: list[torch.Tensor] = []

    def quantize(self, ctx: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
        x, scale, _, _, _, dtype = args
        return self._quantize(ctx, x, scale, dtype, name)

    def quantize_float8(self, ctx: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
        x, scale = args
        return self._quantize(ctx, x, scale, torch.float8_e4m3fn, name)

    def _quantize(self, ctx: Any, x: Any, scale: float, dtype: torch.dtype, name: str) -> Any:
        layer = ctx.net.add_quantize(x, self._number(ctx, scale, name), self._type(dtype))
        layer.name = f"quantize_{name}"
        return layer.get_output(0)

    def dequantize_per_tensor(self, ctx: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
        return self._dequantize(ctx, args[0], self._number(ctx, args[1], name), kwargs.get("out_dtype"), name)

    def dequantize_per_channel(self, ctx: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
        scale = self._constant(ctx, args[1].float(), f"{name}_scale")
        return self._dequantize(ctx, args[0], scale, kwargs.get("out_dtype"), name, axis=args[3])

    def _dequantize(
        self, ctx: Any, x: Any, scale: Any, dtype: torch.dtype | None, name: str, axis: int | None = None
    ) -> Any:
        x = self._constant(ctx, x, f"{name}_weight") if isinstance(x, torch.Tensor) else x
        layer = ctx.net.add_dequantize(x, scale, self._type(dtype or torch.float32))
        if axis is not None:
            layer.axis = axis
        layer.name = f"dequantize_{name}"
        return layer.get_output(0)

    def _number(self, ctx: Any, value: float, name: str) -> Any:
        return self._constant(ctx, torch.tensor(value, dtype=torch.float32), f"{name}_scale")

    def _constant(self, ctx: Any, tensor: torch.Tensor, name: str) -> Any:
        tensor = tensor.detach().cpu().contiguous()
        self._held.append(tensor)
        weights = self._trt.Weights(self._type(tensor.dtype), tensor.data_ptr(), tensor.numel())
        layer = ctx.net.add_constant(tuple(tensor.shape), weights)
        layer.name = name
        return layer.get_output(0)

    def _type(self, dtype: torch.dtype) -> Any:
        return getattr(self._trt, _TYPES[dtype])
