"""Sorting that keeps equal values in order, and of more elements than TensorRT sorts.

Without these: "K exceeds the maximum value allowed (3840)" for longer rows; equal values in any order, also where
``stable=True`` promises theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten

_MOST_OF_TOPK = 3840
_MOST = 16384
"""Elements of the longest row that is sorted by counting, which compares every two."""

_BLOCK = 1024


def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Ordered along ``dim``, and where each element was; equal ones in the order in which they were."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    rows = x.movedim(dim, -1)
    size = rows.shape[-1]
    by_counting = isinstance(size, int) and size > _MOST_OF_TOPK
    values, places = _by_counting(rows, descending) if by_counting else _by_two_sorts(rows, descending)
    return values.movedim(-1, dim), places.movedim(-1, dim)


def _by_two_sorts(rows: Tensor, descending: bool) -> tuple[Tensor, Tensor]:
    """By value, then by place among equal values: those of one run get numbers of one range."""
    size = rows.shape[-1]
    values, places = torch.topk(rows, size, -1, descending)
    order = torch.arange(size, device=rows.device)
    before = values.index_select(-1, torch.clamp(order - 1, min=0))
    run = torch.cumsum((values != before).to(torch.int64), -1)
    number = torch.topk(run * size + places, size, -1, False)[0]
    return values, number - run * size


def _by_counting(rows: Tensor, descending: bool) -> tuple[Tensor, Tensor]:
    """Each element's place is the number of those before it; for some elements at a time, for the memory."""
    size = rows.shape[-1]
    order = torch.arange(size, device=rows.device)
    counts = []
    for start in range(0, size, _BLOCK):
        length = min(_BLOCK, size - start)
        own, place = rows.narrow(-1, start, length).unsqueeze(-1), order.narrow(0, start, length).unsqueeze(-1)
        others = rows.unsqueeze(-2)
        ahead = (others > own if descending else others < own) | ((others == own) & (order < place))
        counts.append(ahead.to(torch.int32).sum(-1).to(torch.int64))
    target = torch.cat(counts, -1)
    return rows.scatter(-1, target, rows), target.scatter(-1, target, order.expand(target.shape))


def stable_sort(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    return sort(x, dim, descending)


def argsort(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    return sort(x, dim, descending)[1]


def stable_argsort(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    return sort(x, dim, descending)[1]


def msort(x: Tensor) -> Tensor:
    return sort(x, 0)[0]


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:  # noqa: A002
    """The first ``k`` of all, in order; by counting, as other sorts are made of this."""
    values, places = _by_counting(x.movedim(dim, -1), largest)
    return values.narrow(-1, 0, k).movedim(-1, dim), places.narrow(-1, 0, k).movedim(-1, dim)


def _is_long(node: Node) -> bool:
    """Whether a row is too long for TensorRT's TopK, and not for counting."""
    x, dim = node.args[0].meta["val"], _dim(node)  # type: ignore[union-attr]
    size = x.shape[dim] if x.dim() else 1
    return isinstance(size, int) and _MOST_OF_TOPK < size <= _MOST


def _is_stable_or_long(node: Node) -> bool:
    return bool(node.kwargs.get("stable")) or _is_long(node)


def _takes_many(node: Node) -> bool:
    k: Any = node.args[1]
    return isinstance(k, int) and k > _MOST_OF_TOPK and _is_long(node)


def _dim(node: Node) -> int:
    if node.target is aten.msort.default:
        return 0
    place = 2 if node.target is aten.topk.default else 1
    given: Any = node.args[place] if len(node.args) > place else node.kwargs.get("dim", -1)
    return given


DECOMPOSITIONS = {
    aten.sort.default: sort,
    aten.sort.stable: stable_sort,
    aten.argsort.default: argsort,
    aten.argsort.stable: stable_argsort,
    aten.msort.default: msort,
    aten.topk.default: topk,
}
ONLY_WHERE = {
    aten.sort.default: _is_long,
    aten.sort.stable: _is_stable_or_long,
    aten.argsort.default: _is_long,
    aten.argsort.stable: _is_stable_or_long,
    aten.msort.default: _is_long,
    aten.topk.default: _takes_many,
}
