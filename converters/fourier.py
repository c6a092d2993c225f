"""Fourier transforms of fixed small sizes, as matrix products.

Without these: "Op type DFT is not supported in TensorRT-RTX".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten

_LARGEST = 1024
"""The longest dim that is transformed: its matrix has the square of that many elements, twice."""


def real_to_complex(x: Tensor, dim: Sequence[int], normalization: int, onesided: bool) -> Tensor:
    """The transform of real numbers along ``dim``, of the last of which half is given if ``onesided``."""
    last = dim[-1]
    size = x.shape[last]
    cosine, sine = _waves(x, size, size // 2 + 1 if onesided else size)
    rows = x.movedim(last, -1)
    parts = torch.matmul(rows, cosine.transpose(0, 1)), -torch.matmul(rows, sine.transpose(0, 1))
    parts = tuple(part.movedim(-1, last) for part in parts)
    parts = _transformed(*parts, dim[:-1], forward=True)
    return _complex(*parts, _factor([x.shape[d] for d in dim], normalization))


def complex_to_complex(x: Tensor, dim: Sequence[int], normalization: int, forward: bool) -> Tensor:
    """The transform of complex numbers along ``dim``, or the inverse one."""
    real, imaginary = torch.view_as_real(x).unbind(-1)
    return _complex(
        *_transformed(real, imaginary, dim, forward), _factor([x.shape[d] for d in dim], normalization)
    )


def complex_to_real(x: Tensor, dim: Sequence[int], normalization: int, last_dim_size: int) -> Tensor:
    """The inverse transform of half a spectrum, whose other half mirrors it, to ``last_dim_size`` real numbers."""
    last = dim[-1]
    real, imaginary = torch.view_as_real(x).unbind(-1)
    real, imaginary = _transformed(real, imaginary, dim[:-1], forward=False)
    half = last_dim_size // 2 + 1
    cosine, sine = _waves(real, last_dim_size, half)
    place = torch.arange(half, device=x.device)
    alone = (place == 0) | (place * 2 == last_dim_size)  # what has no mirror image
    share = torch.where(alone, 1.0, 2.0).unsqueeze(-1)
    result = torch.matmul(real.movedim(last, -1), cosine * share)
    result = result - torch.matmul(imaginary.movedim(last, -1), sine * share)
    sizes = [last_dim_size if d == last else x.shape[d] for d in dim]
    return (result * _factor(sizes, normalization)).movedim(-1, last)


def _transformed(real: Tensor, imaginary: Tensor, dim: Sequence[int], forward: bool) -> tuple[Tensor, Tensor]:
    for axis in dim:
        cosine, sine = _waves(real, real.shape[axis], real.shape[axis])
        sine = -sine if forward else sine
        a, b = real.movedim(axis, -1), imaginary.movedim(axis, -1)
        real = (torch.matmul(a, cosine) - torch.matmul(b, sine)).movedim(-1, axis)
        imaginary = (torch.matmul(a, sine) + torch.matmul(b, cosine)).movedim(-1, axis)
    return real, imaginary


def _waves(x: Tensor, size: int, count: int) -> tuple[Tensor, Tensor]:
    """count x size: cosines and sines of the first frequencies, of angles below a whole turn."""
    place = torch.arange(size, device=x.device)
    product = torch.arange(count, device=x.device).unsqueeze(-1) * place
    turn = product - torch.div(product, size, rounding_mode="trunc") * size
    angle = turn.to(x.dtype) * (2 * math.pi / size)
    return torch.cos(angle), torch.sin(angle)


def _factor(sizes: Sequence[int], normalization: int) -> float:
    count = math.prod(sizes)
    return (1.0, 1 / math.sqrt(count), 1 / count)[normalization]


def _complex(real: Tensor, imaginary: Tensor, factor: float) -> Tensor:
    return torch.view_as_complex(torch.stack([real * factor, imaginary * factor], -1))


def _is_small(node: Node) -> bool:
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    dims: Any = node.args[1]
    return all(isinstance(shape[d], int) and shape[d] <= _LARGEST for d in dims)


def _spelled_out(operator: Any) -> Callable[..., Any]:
    """What torch itself makes of a transform, in the three operators above."""

    def own(*args: Any, **kwargs: Any) -> Any:
        return operator(*args, **kwargs)

    own.spelled_out = True  # type: ignore[attr-defined]
    return own


_THREE = {
    aten._fft_r2c.default: real_to_complex,
    aten._fft_c2c.default: complex_to_complex,
    aten._fft_c2r.default: complex_to_real,
}
_OTHERS = """
    fft fft2 fftn ifft ifft2 ifftn rfft rfft2 rfftn irfft irfft2 irfftn hfft hfft2 hfftn ihfft ihfft2 ihfftn
""".split()
DECOMPOSITIONS = {
    **_THREE,
    **{operator: _spelled_out(operator) for operator in (getattr(aten, f"fft_{name}").default for name in _OTHERS)},
}
ONLY_WHERE = dict.fromkeys(_THREE, _is_small)
