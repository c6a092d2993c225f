"""Special functions.

Without these: "No ONNX function found" for prims.erf_inv; special.entr ends torch.onnx's promotion of types ("Expected
same OpOverload packet, got prim.device != aten.where"); special.log_ndtr is infinite below -5, where it is finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

aten = torch.ops.aten


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


def entr(x: Tensor) -> Tensor:
    """``-x * log(x)``; 0 at 0, minus infinity below it."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    positive = x > 0
    inside = -x * torch.log(torch.where(positive, x, 1.0))
    return torch.where(positive, inside, torch.where(x == 0, 0.0, torch.where(x < 0, -math.inf, x)))


def log_ndtr(x: Tensor) -> Tensor:
    """The logarithm of the normal distribution's function. For each side by its own tail, which is small, so that
    nothing cancels; the tail by its Chebyshev fit (Numerical Recipes, "erfcc": 1.2e-7 of its value everywhere)."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    z = x.abs() * math.sqrt(0.5)
    t = 2 / (2 + z)
    tail = torch.log(t) + _polynomial(t, _ERFC) - z * z - math.log(2)
    return torch.where(x < 0, tail, torch.log1p(-torch.exp(tail)))


_ERFC = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
    -1.26551223,
)  # fmt: skip


DECOMPOSITIONS = {
    aten.erfinv.default: erfinv,
    aten.special_entr.default: entr,
    aten.special_log_ndtr.default: log_ndtr,
}
