"""Elementwise operators of floats.

Without these: "No ONNX function found" for prims.fmax, fmin, hypot, frexp, signbit; torch.onnx's arc tangents of two
numbers are wrong by pi where the first is 0 and the second negative; isfinite of float16 ends its promotion of types
("Expected same OpOverload packet, got aten.abs != aten.isfinite", torch 2.11).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

aten = torch.ops.aten


def together(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.result_type(x, y)
    return x.to(dtype), y.to(dtype)


def fmax(x: Tensor, y: Tensor) -> Tensor:
    """The larger of two, where a NaN loses to any number."""
    x, y = together(x, y)
    if not x.is_floating_point():
        return torch.maximum(x, y)
    larger = torch.where(x > y, x, y)
    return torch.where(torch.isnan(y), x, larger)


def fmin(x: Tensor, y: Tensor) -> Tensor:
    """The smaller of two, where a NaN loses to any number."""
    x, y = together(x, y)
    if not x.is_floating_point():
        return torch.minimum(x, y)
    smaller = torch.where(x < y, x, y)
    return torch.where(torch.isnan(y), x, smaller)


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """``sqrt(x**2 + y**2)``, by the larger of the two, so that no square overflows."""
    x, y = together(x, y)
    x, y = x.abs(), y.abs()
    larger, smaller = torch.maximum(x, y), torch.minimum(x, y)
    ratio = smaller / torch.where(larger == 0, 1.0, larger)
    infinite = torch.isinf(x) | torch.isinf(y)
    return torch.where(infinite, math.inf, larger * torch.sqrt(ratio * ratio + 1))


def _negative(x: Tensor) -> Tensor:
    """Where the sign bit is set: below zero, and at minus zero, whose reciprocal is below zero."""
    if not x.is_floating_point():
        return x < 0
    return (x < 0) | ((x == 0) & (torch.reciprocal(x) < 0))


def copysign(x: Tensor, y: Tensor) -> Tensor:
    """``x`` with the sign of ``y``."""
    dtype = torch.result_type(x, y)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    size = x.to(dtype).abs()
    return torch.where(_negative(y), -size, size)


def copysign_number(x: Tensor, y: float) -> Tensor:
    size = (x if x.is_floating_point() else x.to(torch.get_default_dtype())).abs()
    return -size if math.copysign(1.0, y) < 0 else size + 0.0


def frexp(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mantissas in [0.5, 1) and exponents. The logarithm may be one off at a power of two, which is then put right."""
    usual = (x != 0) & ~torch.isinf(x) & ~torch.isnan(x)
    size = torch.where(usual, x.abs(), 1.0)
    exponent = torch.floor(torch.log2(size)) + 1
    half = torch.floor(exponent / 2)  # in two steps: 2**-exponent alone may overflow
    mantissa = size * torch.exp2(-half) * torch.exp2(half - exponent)
    exponent = torch.where(mantissa >= 1, exponent + 1, torch.where(mantissa < 0.5, exponent - 1, exponent))
    mantissa = torch.where(mantissa >= 1, mantissa * 0.5, torch.where(mantissa < 0.5, mantissa * 2, mantissa))
    mantissa = torch.where(x < 0, -mantissa, mantissa)
    return torch.where(usual, mantissa, x), torch.where(usual, exponent, 0.0).to(torch.int32)


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """The angle of the point (x, y), from -pi to pi, by the smaller of both over the larger."""
    y, x = together(y, x)
    if not x.is_floating_point():
        y, x = y.to(torch.get_default_dtype()), x.to(torch.get_default_dtype())
    height, width = y.abs(), x.abs()
    larger, smaller = torch.maximum(height, width), torch.minimum(height, width)
    ratio = smaller / torch.where(larger == 0, 1.0, larger)
    angle = torch.atan(torch.where(torch.isinf(smaller), 1.0, ratio))
    angle = torch.where(height > width, math.pi / 2 - angle, angle)
    angle = torch.where(_negative(x), math.pi - angle, angle)
    angle = torch.where(_negative(y), -angle, angle)
    return torch.where(torch.isnan(x) | torch.isnan(y), math.nan, angle)


def isfinite(x: Tensor) -> Tensor:
    """Whether it is neither infinite nor NaN; so is every whole number."""
    return x.abs() < math.inf if x.is_floating_point() else x == x


DECOMPOSITIONS = {
    aten.fmax.default: fmax,
    aten.fmin.default: fmin,
    aten.hypot.default: hypot,
    aten.copysign.Tensor: copysign,
    aten.copysign.Scalar: copysign_number,
    aten.frexp.Tensor: frexp,
    aten.atan2.default: atan2,
    aten.isfinite.default: isfinite,
}
