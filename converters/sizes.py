"""Results whose size depends on the data: all rows that there may be, the right ones first, and how many are right.

Without these: "TensorRT for RTX has no kernel" for NonZero, which nonzero, argwhere, masked_select and indexing by a
mask become; torch.onnx's "unique_consecutive not implemented for other type than int32, int64". The rows are cut to
their number outside the engine (:mod:`torchtrt_bridge.edge_rows`).

The right rows are put first by a running count and one scatter, for any number of them; a sort, which becomes a TopK,
takes 3840.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

aten = torch.ops.aten


def nonzero(x: Tensor) -> tuple[Tensor, Tensor]:
    """(numel, dims) places of what is not zero, in order, and their number."""
    places, count = _places((x != 0).reshape(-1))
    columns = []
    for extent in reversed(x.shape):
        above = torch.div(places, extent, rounding_mode="trunc")
        columns.append(places - above * extent)
        places = above
    return torch.stack(columns[::-1], -1), count


def where(condition: Tensor) -> tuple[Tensor, ...]:
    """:func:`nonzero` by columns."""
    places, count = nonzero(condition)
    return *places.unbind(1), count


def masked_select(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The elements where ``mask`` holds, in order, and their number."""
    x, mask = torch.broadcast_tensors(x, mask)
    places, count = _places(mask.reshape(-1))
    return x.reshape(-1).index_select(0, places), count


def index(x: Tensor, indices: Sequence[Tensor | None]) -> tuple[Tensor, Tensor] | None:
    """What a mask of the first dims of ``x`` selects, and its number; None for other indices."""
    mask = indices[0]
    if len(indices) != 1 or mask is None or mask.dtype != torch.bool:
        return None
    places, count = _places(mask.reshape(-1))
    return x.reshape(-1, *x.shape[mask.dim() :]).index_select(0, places), count


def unique_consecutive(
    x: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The slices along ``dim`` (or the elements) that differ from the one before, for each slice which of them it is,
    how often each is repeated, and how many they are."""
    items = x.reshape(-1) if dim is None else x
    rows = items.reshape(-1, 1) if dim is None else x.movedim(dim, 0).reshape(x.shape[dim], -1)
    place = torch.arange(rows.shape[0], device=x.device)
    differs = (rows != rows.index_select(0, torch.clamp(place - 1, min=0))).to(torch.int64).sum(-1) > 0
    fresh = (place == 0) | differs
    starts, count = _places(fresh)
    found = items.index_select(dim or 0, starts)
    inverse = torch.cumsum(fresh.to(torch.int64), 0) - 1
    starts = torch.where(place < count, starts, rows.shape[0])
    following = starts.index_select(0, torch.clamp(place + 1, max=rows.shape[0] - 1))
    counts = torch.where(place == rows.shape[0] - 1, rows.shape[0], following) - starts
    return found, inverse.reshape(x.shape) if dim is None else inverse, counts, count


def unique(
    x: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False  # noqa: A002
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The different elements in ascending order, for each element which of them it is, how often each is there, and how
    many they are."""
    ordered, places = torch.sort(x.reshape(-1))
    found, which, counts, count = unique_consecutive(ordered)
    inverse = torch.zeros_like(places).scatter(0, places, which)
    return found, inverse.reshape(x.shape), counts, count


def _places(holds: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) to (n,): the places where it holds, in order, then zeros; and how many they are."""
    running = torch.cumsum(holds.to(torch.int64), 0)
    length = holds.shape[0]
    target = torch.where(holds, running - 1, length)  # the rest goes to one place more, which is cut off
    order = torch.arange(length, device=holds.device)
    places = torch.zeros(length + 1, dtype=torch.int64, device=holds.device).scatter(0, target, order)
    return places.narrow(0, 0, length), holds.to(torch.int64).sum()


COUNTED = {
    aten.nonzero.default: nonzero,
    aten.argwhere.default: nonzero,
    aten.where.default: where,
    aten.masked_select.default: masked_select,
    aten.index.Tensor: index,
    aten.unique_consecutive.default: unique_consecutive,
    aten._unique2.default: unique,
}
"""Operator overload to a function of its arguments that gives its results in the largest size, then the number of rows
that are right. None in place of that: not for these arguments."""
