"""Whole numbers: bits, shifts, powers, and what rounds or tests floats.

Without these: TensorRT's parser takes neither BitwiseAnd, BitwiseOr, BitwiseXor and BitwiseNot of integers, nor the
unsigned types that torch.onnx shifts in, nor Ceil, Floor, Round, IsNaN and IsInf of integers; it computes powers in
floats (4.8 % of them wrong).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from .elementwise import together

aten = torch.ops.aten


def bitwise_not(x: Tensor) -> Tensor:
    """All bits the other way: in two's complement, ``-1 - x``."""
    if x.dtype == torch.bool:
        return torch.logical_not(x)
    return (255 if x.dtype == torch.uint8 else -1) - x


def bitwise_and(x: Tensor, y: Tensor) -> Tensor:
    """Bit by bit, in a further axis of as many places as the dtype has bits."""
    x, y = together(x, y)
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
    x, y = together(x, y)
    return torch.logical_or(x, y) if x.dtype == torch.bool else (x - bitwise_and(x, y)) + y


def bitwise_xor(x: Tensor, y: Tensor) -> Tensor:
    x, y = together(x, y)
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


def _of_whole_numbers(node: Node) -> bool:
    argument = node.args[0]
    return isinstance(argument, Node) and not argument.meta["val"].dtype.is_floating_point


def left_shift(x: Tensor, y: Tensor) -> Tensor:
    """``x * 2**y``."""
    x, y = together(x, y)
    return x * _power_of_two(y)


def right_shift(x: Tensor, y: Tensor) -> Tensor:
    """``x / 2**y``, rounded down, as the sign bit is copied."""
    x, y = together(x, y)
    quotient = torch.div(_from_zero(x), _power_of_two(y), rounding_mode="trunc")
    return torch.where(x < 0, -1 - quotient, quotient)


def _power_of_two(y: Tensor) -> Tensor:
    table = _powers_of_two(y)
    place = torch.clamp(torch.clamp(y, min=0), max=table.shape[0] - 1)
    return table.index_select(0, place.reshape(-1).to(torch.int64)).reshape(y.shape)


def power(x: Tensor, y: Tensor) -> Tensor:
    """``x**y`` by squaring, for exponents below 2**15 (the result has at most 63 bits); for a negative exponent what is
    left of the reciprocal: of 1 and -1 themselves, of all else 0."""
    x, y = together(x, y)
    rest = torch.clamp(y, min=0)
    result, square = torch.ones_like(x + y), x
    for _ in range(15):
        half = torch.div(rest, 2, rounding_mode="trunc")
        result = torch.where(rest - 2 * half > 0, result * square, result)
        square, rest = square * square, half
    odd = y - 2 * torch.div(y, 2, rounding_mode="trunc") != 0
    unit = torch.where(x == 1, 1, torch.where(x == -1, torch.where(odd, -1, 1), 0))
    return torch.where(y < 0, unit, result)


def power_of_number(x: float, y: Tensor) -> Tensor:
    return power(torch.full_like(y, x), y)


def power_to_number(x: Tensor, y: float) -> Tensor:
    """``x**y`` by squaring, with no more products than the exponent has bits twice over."""
    exponent = int(y)
    result, square = torch.ones_like(x), x
    while exponent:
        if exponent % 2:
            result = result * square
        square, exponent = square * square, exponent // 2
    return result


def _is_whole(node: Node) -> bool:
    return not node.meta["val"].dtype.is_floating_point and node.meta["val"].dtype != torch.bool


def _is_whole_and_not_negative(node: Node) -> bool:
    return _is_whole(node) and isinstance(node.args[1], (int, float)) and node.args[1] >= 0


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
}
_POWERS = {
    aten.pow.Tensor_Tensor: power,
    aten.pow.Scalar: power_of_number,
    aten.pow.Tensor_Scalar: power_to_number,
}
DECOMPOSITIONS = {
    **_ON_WHOLE_NUMBERS,
    **_POWERS,
    aten.bitwise_and.Tensor: bitwise_and,
    aten.bitwise_or.Tensor: bitwise_or,
    aten.bitwise_xor.Tensor: bitwise_xor,
    aten.bitwise_not.default: bitwise_not,
    aten.bitwise_left_shift.Tensor: left_shift,
    aten.bitwise_right_shift.Tensor: right_shift,
}
ONLY_WHERE = {
    **dict.fromkeys(_ON_WHOLE_NUMBERS, _of_whole_numbers),
    **dict.fromkeys(_POWERS, _is_whole),
    aten.pow.Tensor_Scalar: _is_whole_and_not_negative,
}
