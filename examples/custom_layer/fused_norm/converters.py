"""What the operator means to torchtrt_bridge, which imports this module through the entry point in pyproject.toml.

The first form is enough for every route. The other two are there to show them: each is used where it can be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import torchtrt_bridge as ttb


@ttb.converter("fused_norm::add_rms_norm", reason="a Triton kernel, which no route can see into")
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    scale = torch.rsqrt(total.float().square().mean(-1, keepdim=True) + eps)
    return (total.float() * scale).to(x.dtype) * weight, total


@add_rms_norm.tensorrt
def layers(ctx: Any, x: Any, residual: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    """TensorRT's layers by hand; the mean is taken in fp32, whatever ``x`` is in."""

    def elementwise(kind: str, *tensors: Any) -> Any:
        operation = getattr(ctx.trt.ElementWiseOperation, kind)
        return ctx.network.add_elementwise(*ctx.broadcast(*tensors), operation).get_output(0)

    total = elementwise("SUM", x, residual)
    wide = ctx.cast(total, torch.float32)
    last = 1 << (len(wide.shape) - 1)
    mean = ctx.network.add_reduce(elementwise("PROD", wide, wide), ctx.trt.ReduceOperation.AVG, last, True)
    shifted = elementwise("SUM", mean.get_output(0), ctx.constant(eps))
    root = ctx.network.add_unary(shifted, ctx.trt.UnaryOperation.SQRT).get_output(0)
    return elementwise("PROD", ctx.cast(elementwise("DIV", wide, root), x.dtype), weight), total


@add_rms_norm.onnx
def nodes(x: Any, residual: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    """The same as ONNX operators; the ONNX route has it where TensorRT's layers do not serve, as on the CPU."""
    from onnx import TensorProto
    from onnxscript import opset18 as op

    total = op.Add(x, residual)
    wide = op.Cast(total, to=TensorProto.FLOAT)
    mean = op.ReduceMean(op.Mul(wide, wide), op.Constant(value_ints=[-1]), keepdims=1)
    scaled = op.Div(wide, op.Sqrt(op.Add(mean, op.Constant(value_float=eps))))
    return op.Mul(op.CastLike(scaled, x), weight), total
