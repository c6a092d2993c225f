"""Running products and extremes.

Without these: "No ONNX function found" for prims.prod (cumprod, linalg.vander), cummax and cummin.
"""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Running products along ``dim``: in log2(n) steps, or, where n is dynamic, as n x n products."""
    if dtype is not None:
        x = x.to(dtype)
    elif not x.is_floating_point():
        x = x.to(torch.int64)
    if x.dim() == 0:
        return x.clone()
    size = x.shape[dim]
    if not isinstance(size, int):
        return torch.prod(torch.where(_before(x, dim), x.movedim(dim, -1).unsqueeze(-2), 1), -1).movedim(-1, dim)
    step = 1
    while step < size:
        x = torch.cat([x.narrow(dim, 0, step), x.narrow(dim, step, size - step) * x.narrow(dim, 0, size - step)], dim)
        step *= 2
    return x


def cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Running maxima along ``dim`` and where they are; among equals, the last."""
    return _extremes(x, dim, largest=True)


def cummin(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Running minima along ``dim`` and where they are; among equals, the last."""
    return _extremes(x, dim, largest=False)


def _extremes(x: Tensor, dim: int, largest: bool) -> tuple[Tensor, Tensor]:
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    dim %= x.dim()
    size = x.shape[dim]
    shape = [1] * x.dim()
    shape[dim] = -1
    place = torch.arange(size, device=x.device).reshape(shape).expand(x.shape)
    if isinstance(size, int):
        return _extremes_by_steps(x, place, dim, size, largest)
    values = x.movedim(dim, -1).unsqueeze(-2)
    lowest = _beyond(x.dtype, largest)
    before = _before(x, dim)
    seen = torch.where(before, values, lowest)
    best = seen.amax(-1) if largest else seen.amin(-1)
    among = before & (seen == best.unsqueeze(-1))
    found = torch.where(among, torch.arange(size, device=x.device), -1).amax(-1)
    return best.movedim(-1, dim), found.movedim(-1, dim)


def _extremes_by_steps(x: Tensor, place: Tensor, dim: int, size: int, largest: bool) -> tuple[Tensor, Tensor]:
    step = 1
    while step < size:
        rest = size - step
        late, early = x.narrow(dim, step, rest), x.narrow(dim, 0, rest)
        keep = late >= early if largest else late <= early
        if x.is_floating_point():
            keep = keep | torch.isnan(late)
            keep = keep & ~(torch.isnan(early) & ~torch.isnan(late))
        places = torch.where(keep, place.narrow(dim, step, rest), place.narrow(dim, 0, rest))
        x = torch.cat([x.narrow(dim, 0, step), torch.where(keep, late, early)], dim)
        place = torch.cat([place.narrow(dim, 0, step), places], dim)
        step *= 2
    return x, place


def _before(x: Tensor, dim: int) -> Tensor:
    """n x n: whether the second index is not after the first."""
    place = torch.arange(x.shape[dim], device=x.device)
    return place.unsqueeze(0) <= place.unsqueeze(1)


def _beyond(dtype: torch.dtype, largest: bool) -> float | int:
    if dtype.is_floating_point:
        return float("-inf") if largest else float("inf")
    if dtype == torch.bool:
        return not largest
    return torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max


def linalg_vander(x: Tensor, *, N: int | None = None) -> Tensor:  # noqa: N803
    """(..., n) to (..., n, N): the powers from 0 on."""
    number = x.shape[-1] if N is None else N
    powers = x.unsqueeze(-1).expand(*x.shape, number - 1)
    return torch.cat([torch.ones_like(x).unsqueeze(-1), cumprod(powers, -1)], -1)


DECOMPOSITIONS = {
    aten.linalg_vander.default: linalg_vander,
    aten.cumprod.default: cumprod,
    aten.cummax.default: cummax,
    aten.cummin.default: cummin,
}
