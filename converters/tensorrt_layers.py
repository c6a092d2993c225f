"""Operators as TensorRT's own layers: attention without a mask, RMS norm, and resizing.

Whether a form is faster than what a route makes of the operator by itself is a matter of measurement
(``benchmarks/converters.py``), so each is in :data:`DEFAULT` or not; those that are not serve whoever names them:
``compile(..., converters=[torchtrt_bridge.converters.tensorrt_layers.attention])``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

import torchtrt_bridge as ttb

if TYPE_CHECKING:
    from torchtrt_bridge.registry import Call
    from torchtrt_bridge.trt.conversion import ConversionContext

#: The converters that every compilation has.
DEFAULT: frozenset[str] = frozenset()


def _attention(call: Call) -> bool | str:
    query, key, value = call["query"], call["key"], call["value"]
    if call["attn_mask"] is not None or call["dropout_p"]:
        return "the layer is made for attention without a mask or dropout"
    if any(tensor.dim() != 4 for tensor in (query, key, value)):
        return "TensorRT's attention layer has four dimensions"
    if call["enable_gqa"] or str(query.shape[1]) != str(key.shape[1]):
        return "the layer is made for as many heads of keys as of queries"
    if call["is_causal"] and str(query.shape[2]) != str(key.shape[2]):
        return "versions of TensorRT differ in where a causal mask begins if queries and keys differ in number"
    return True


attention = ttb.converter(
    "aten::scaled_dot_product_attention",
    when=_attention,
    precision="low",
    register="attention" in DEFAULT,
    reason="one attention layer, whose scale is multiplied into the queries alone; ONNX has it in queries and keys",
)


@attention.tensorrt
def attention_layers(
    ctx: ConversionContext,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """(B, H, L, E), (B, H, S, E), (B, H, S, V) to (B, H, L, V). Where no fused kernel takes it (fp32), TensorRT may
    decompose it."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scaled = ctx.network.add_elementwise(
        *ctx.broadcast(query, ctx.cast(ctx.constant(factor), query.dtype)), ctx.trt.ElementWiseOperation.PROD
    ).get_output(0)
    softmax = ctx.trt.AttentionNormalizationOp.SOFTMAX
    layer = ctx.network.add_attention(scaled, key, value, softmax, is_causal)
    layer.decomposable = True
    return layer


rms_norm = ttb.converter(
    "aten::rms_norm",
    when=lambda call: call["eps"] is not None or "eps=None means another eps in each dtype",
    register="rms_norm" in DEFAULT,
    reason="the mean of the squares in fp32, whatever the dtype",
)


@rms_norm.tensorrt
def rms_norm_layers(
    ctx: ConversionContext, x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axes."""
    operation, unary = ctx.trt.ElementWiseOperation, ctx.trt.UnaryOperation
    wide = ctx.cast(x, torch.float32)
    square = ctx.network.add_elementwise(wide, wide, operation.PROD).get_output(0)
    rank = len(x.shape)
    axes = sum(1 << axis for axis in range(rank - len(normalized_shape), rank))
    mean = ctx.network.add_reduce(square, ctx.trt.ReduceOperation.AVG, axes, True).get_output(0)
    shifted = ctx.network.add_elementwise(*ctx.broadcast(mean, ctx.constant(eps)), operation.SUM).get_output(0)
    root = ctx.network.add_unary(shifted, unary.SQRT).get_output(0)
    result = ctx.cast(ctx.network.add_elementwise(wide, root, operation.DIV).get_output(0), x.dtype)
    if weight is None:
        return result
    return ctx.network.add_elementwise(*ctx.broadcast(result, ctx.cast(weight, x.dtype)), operation.PROD)


def _resize(call: Call) -> bool | str:
    factors = call["scale_factors"]
    if factors is not None and not all(float(factor).is_integer() for factor in factors):
        return "torch computes places by the scale, and TensorRT by the sizes, which differ unless it is a whole number"
    return True


def _resizing(target: str, name: str) -> Any:
    return ttb.converter(
        target, when=_resize, register=name in DEFAULT, reason="one resize layer, also where a route gathers pixels"
    )


bicubic = _resizing("aten::upsample_bicubic2d.vec", "bicubic")
bilinear = _resizing("aten::upsample_bilinear2d.vec", "bilinear")


@bicubic.tensorrt
def bicubic_layers(
    ctx: ConversionContext, x: Any, output_size: Sequence[Any] | None, align_corners: bool, scale_factors: Any
) -> Any:
    """(N, C, H, W) to (N, C, h, w) by Keys' cubic with a = -0.75, as torch has it."""
    layer = _resized(ctx, x, output_size, align_corners, scale_factors)
    layer.resize_mode = ctx.trt.InterpolationMode.CUBIC
    layer.cubic_coeff = -0.75
    return layer


@bilinear.tensorrt
def bilinear_layers(
    ctx: ConversionContext, x: Any, output_size: Sequence[Any] | None, align_corners: bool, scale_factors: Any
) -> Any:
    """(N, C, H, W) to (N, C, h, w)."""
    layer = _resized(ctx, x, output_size, align_corners, scale_factors)
    layer.resize_mode = ctx.trt.InterpolationMode.LINEAR
    return layer


def _resized(
    ctx: ConversionContext, x: Any, output_size: Sequence[Any] | None, align_corners: bool, scale_factors: Any
) -> Any:
    transformation = ctx.trt.ResizeCoordinateTransformation
    sizes = output_size or [_times(ctx, ctx.size(x, axis + 2), int(s)) for axis, s in enumerate(scale_factors)]
    shape = [ctx.size(x, 0), ctx.size(x, 1), *sizes]
    layer = ctx.network.add_resize(x)
    if all(isinstance(size, int) for size in shape):
        layer.shape = shape
    else:
        layer.set_input(1, ctx.shape_of(shape))
    layer.coordinate_transformation = transformation.ALIGN_CORNERS if align_corners else transformation.HALF_PIXEL
    return layer


def _times(ctx: ConversionContext, size: Any, factor: int) -> Any:
    if isinstance(size, int):
        return size * factor
    product = ctx.trt.ElementWiseOperation.PROD
    return ctx.network.add_elementwise(size, ctx.constant([factor]), product).get_output(0)
