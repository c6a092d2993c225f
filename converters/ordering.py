"""Order statistics by sorting, searching by counting.

Without these: "No ONNX function found" for aten.kthvalue, median, nanmedian, mode and searchsorted (isin), "not
supported in this export path" for a histogram that finds its own range; a bucketize of dynamic size that TensorRT does
not run.
"""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The k-th smallest along ``dim``, and where it is."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values, places = torch.sort(x, dim)
    value, place = values.narrow(dim, k - 1, 1), places.narrow(dim, k - 1, 1)
    return (value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim))


def median(x: Tensor) -> Tensor:
    """The lower median of all elements; NaN if any is."""
    return median_dim(x.reshape(-1), 0)[0]


def median_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower median along ``dim``, and where it is; NaN, and where one is, if any is."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    if not x.is_floating_point():
        return kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)
    missing = torch.isnan(x)
    value, place = kthvalue(torch.where(missing, torch.inf, x), (x.shape[dim] + 1) // 2, dim, keepdim)
    return _where_missing(missing, dim, keepdim, value, place)


def _where_missing(missing: Tensor, dim: int, keepdim: bool, value: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    number = missing.to(torch.int64)
    some = number.amax(dim, keepdim=keepdim) > 0
    return torch.where(some, torch.nan, value), torch.where(some, number.argmax(dim, keepdim=keepdim), place)


def nanmedian(x: Tensor) -> Tensor:
    """The lower median of all elements that are not NaN."""
    return nanmedian_dim(x.reshape(-1), 0)[0]


def nanmedian_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower median of what is not NaN along ``dim``, and where it is; NaN where all are."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    if not x.is_floating_point():
        return median_dim(x, dim, keepdim)
    missing = torch.isnan(x)
    values, places = torch.sort(torch.where(missing, torch.inf, x), dim)
    number = (~missing).to(torch.int64).sum(dim, keepdim=True)
    middle = torch.clamp(number - 1, min=0) // 2
    value, place = torch.gather(values, dim, middle), torch.gather(places, dim, middle)
    value = torch.where(number == 0, torch.nan, value)
    return (value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim))


def mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The most frequent value along ``dim`` (the smallest of several), and the last place where it is."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    rows = x.movedim(dim, -1)
    ordered, _ = torch.sort(rows, -1)
    number = (ordered.unsqueeze(-1) == ordered.unsqueeze(-2)).to(torch.int64).sum(-1)
    places = torch.arange(rows.shape[-1], device=x.device)
    size = rows.shape[-1]
    first = (number * size + (size - 1 - places)).argmax(-1, keepdim=True)  # no two are equal: TensorRT takes any
    value = torch.gather(ordered, -1, first)
    place = torch.where(rows == value, places, -1).amax(-1, keepdim=True)
    if keepdim:
        return value.movedim(-1, dim), place.movedim(-1, dim)
    return value.squeeze(-1), place.squeeze(-1)


def searchsorted(
    sequence: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """How many of a sorted sequence are below a value (``right``: or equal to it)."""
    if sorter is not None:
        sequence = torch.gather(sequence, -1, sorter)
    if sequence.dim() == 1:
        sequence = sequence.reshape([1] * values.dim() + [-1])
    else:
        sequence = sequence.unsqueeze(-2)
    values = values.unsqueeze(-1)
    below = sequence <= values if right or side == "right" else sequence < values
    return below.to(torch.int32 if out_int32 else torch.int64).sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """:func:`searchsorted` with its arguments the other way round."""
    return searchsorted(boundaries, x, out_int32=out_int32, right=right)


def isin(x: Tensor, among: Tensor, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Whether each element is equal to one of some others, compared with every one."""
    found = (x.unsqueeze(-1) == among.reshape(-1)).to(torch.int32).sum(-1) > 0
    return torch.logical_not(found) if invert else found


def histc(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:  # noqa: A002
    """How many elements lie in each of equal ranges from ``min`` to ``max``, or, where these are equal, from the
    smallest to the largest element."""
    x = x.reshape(-1)
    if min == max:
        low, high = x.amin(0), x.amax(0)
        alike = low == high
        low, high = torch.where(alike, low - 1, low), torch.where(alike, high + 1, high)
    else:
        low, high = torch.full_like(x[0], min), torch.full_like(x[0], max)
    place = torch.floor((x - low) * bins / (high - low))
    place = torch.where(x == high, bins - 1, place)
    inside = (x >= low) & (x <= high)
    each = torch.arange(bins, device=x.device, dtype=x.dtype).unsqueeze(-1)
    return (inside & (place == each)).to(x.dtype).sum(-1)


DECOMPOSITIONS = {
    aten.histc.default: histc,
    aten.isin.Tensor_Tensor: isin,
    aten.kthvalue.default: kthvalue,
    aten.median.default: median,
    aten.median.dim: median_dim,
    aten.nanmedian.default: nanmedian,
    aten.nanmedian.dim: nanmedian_dim,
    aten.mode.default: mode,
    aten.searchsorted.Tensor: searchsorted,
    aten.bucketize.Tensor: bucketize,
}
