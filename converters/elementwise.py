"""Elementwise operators.

Without these: "No ONNX function found" for prims.fmax, fmin, hypot, frexp, erf_inv, signbit; TensorRT's parser takes
neither BitwiseAnd, BitwiseOr, BitwiseXor and BitwiseNot of integers, nor the unsigned types that torch.onnx shifts in,
nor Ceil, Floor, Round, IsNaN and IsInf of integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten


def _together(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.result_type(x, y)
    return x.to(dtype), y.to(dtype)


def fmax(x: Tensor, y: Tensor) -> Tensor:
    """The larger of two, where a NaN loses to any number."""
    x, y = _together(x, y)
    if not x.is_floating_point():
        return torch.maximum(x, y)
    larger = torch.where(x > y, x, y)
    return torch.where(torch.isnan(y), x, larger)


def fmin(x: Tensor, y: Tensor) -> Tensor:
    """The smaller of two, where a NaN loses to any number."""
    x, y = _together(x, y)
    if not x.is_floating_point():
        return torch.minimum(x, y)
    smaller = torch.where(x < y, x, y)
    return torch.where(torch.isnan(y), x, smaller)


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """``sqrt(x**2 + y**2)``, by the larger of the two, so that no square overflows."""
    x, y = _together(x, y)
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


def erfinv(x: Tensor) -> Tensor:
    """Giles' polynomials ("Approximating the erfinv function", 2010) and one step of Newton's method."""
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    inside = x.abs() < 1
    z = torch.where(inside, x, 0.0)
    w = -torch.log((1 - z) * (1 + z))
    near = _polynomial(w - 2.5, _NEAR)
    far = _polynomial(torch.sqrt(torch.clamp(w, min=5.0)) - 3, _FAR)
    y = torch.where(w < 5, near, far) * z
    y = y - (torch.erf(y) - z) * (0.5 * math.sqrt(math.pi)) * torch.exp(y * y)
    edge = torch.where(x == 1, math.inf, torch.where(x == -1, -math.inf, math.nan))
    return torch.where(inside, y, edge.to(y.dtype))


_NEAR = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
_FAR = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    result = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


def bitwise_not(x: Tensor) -> Tensor:
    """All bits the other way: in two's complement, ``-1 - x``."""
    if x.dtype == torch.bool:
        return torch.logical_not(x)
    return (255 if x.dtype == torch.uint8 else -1) - x


def bitwise_and(x: Tensor, y: Tensor) -> Tensor:
    """Bit by bit, in a further axis of as many places as the dtype has bits."""
    x, y = _together(x, y)
    if x.dtype == torch.bool:
        return torch.logical_and(x, y)
    weights = _powers_of_two(x)
    first, second = _bits(x, weights), _bits(y, weights)
    both = first * second * weights
    while both.shape[-1] > 1:  # in halves: ONNX Runtime's sum of int64 goes through floats
        half = both.shape[-1] // 2
        rest = both.narrow(-1, 2 * half, both.shape[-1] - 2 * half)
        both = torch.cat([both.narrow(-1, 0, half) + both.narrow(-1, half, half), rest], -1)
    both = both.squeeze(-1)
    if x.dtype == torch.uint8:
        return both
    return torch.where((x < 0) & (y < 0), both + torch.iinfo(x.dtype).min, both)


def _bits(x: Tensor, weights: Tensor) -> Tensor:
    """The bits below the sign, in a last axis. Only numbers from zero on are divided: runtimes round others as they
    like; a negative number's bits are those of ``-1 - x`` the other way."""
    negative = (x < 0).unsqueeze(-1)
    quotient = torch.div(_from_zero(x).unsqueeze(-1), weights, rounding_mode="trunc")
    bit = quotient - torch.div(quotient, 2, rounding_mode="trunc") * 2
    return torch.where(negative, 1 - bit, bit)


def _from_zero(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1 - x, x)


def _powers_of_two(x: Tensor) -> Tensor:
    """All that the dtype has, as a table: a runtime's exp2 is not exact."""
    bits = 8 if x.dtype == torch.uint8 else torch.iinfo(x.dtype).bits - 1
    return torch.cat([torch.full([1], 1 << bit, dtype=x.dtype, device=x.device) for bit in range(bits)])


def bitwise_or(x: Tensor, y: Tensor) -> Tensor:
    x, y = _together(x, y)
    return torch.logical_or(x, y) if x.dtype == torch.bool else (x - bitwise_and(x, y)) + y


def bitwise_xor(x: Tensor, y: Tensor) -> Tensor:
    x, y = _together(x, y)
    if x.dtype == torch.bool:
        return torch.logical_xor(x, y)
    both = bitwise_and(x, y)
    return (x - both) + (y - both)


def unchanged(x: Tensor) -> Tensor:
    """What rounding is to a whole number."""
    return x.clone()


def never(x: Tensor) -> Tensor:
    """False everywhere, as a whole number is no NaN."""
    return x != x


def always(x: Tensor) -> Tensor:
    """True everywhere, as a whole number is finite."""
    return x == x


def _of_whole_numbers(node: Node) -> bool:
    argument = node.args[0]
    return isinstance(argument, Node) and not argument.meta["val"].dtype.is_floating_point


def left_shift(x: Tensor, y: Tensor) -> Tensor:
    """``x * 2**y``."""
    x, y = _together(x, y)
    return x * _power_of_two(y)


def right_shift(x: Tensor, y: Tensor) -> Tensor:
    """``x / 2**y``, rounded down, as the sign bit is copied."""
    x, y = _together(x, y)
    quotient = torch.div(_from_zero(x), _power_of_two(y), rounding_mode="trunc")
    return torch.where(x < 0, -1 - quotient, quotient)


def _power_of_two(y: Tensor) -> Tensor:
    table = _powers_of_two(y)
    place = torch.clamp(torch.clamp(y, min=0), max=table.shape[0] - 1)
    return table.index_select(0, place.reshape(-1).to(torch.int64)).reshape(y.shape)


_ON_WHOLE_NUMBERS = {
    aten.ceil.default: unchanged,
    aten.floor.default: unchanged,
    aten.round.default: unchanged,
    aten.trunc.default: unchanged,
    aten.fix.default: unchanged,
    aten.isnan.default: never,
    aten.isinf.default: never,
    aten.isposinf.default: never,
    aten.isneginf.default: never,
    aten.isfinite.default: always,
}
DECOMPOSITIONS = {
    **_ON_WHOLE_NUMBERS,
    aten.fmax.default: fmax,
    aten.fmin.default: fmin,
    aten.hypot.default: hypot,
    aten.copysign.Tensor: copysign,
    aten.copysign.Scalar: copysign_number,
    aten.frexp.Tensor: frexp,
    aten.erfinv.default: erfinv,
    aten.bitwise_and.Tensor: bitwise_and,
    aten.bitwise_or.Tensor: bitwise_or,
    aten.bitwise_xor.Tensor: bitwise_xor,
    aten.bitwise_not.default: bitwise_not,
    aten.bitwise_left_shift.Tensor: left_shift,
    aten.bitwise_right_shift.Tensor: right_shift,
}
ONLY_WHERE = dict.fromkeys(_ON_WHOLE_NUMBERS, _of_whole_numbers)
