"""Writing at indices with a reduction.

Without these: "No ONNX function found" for aten.index_reduce; TensorRT takes no scatters that reduce (scatter_add,
index_add, index_put that adds): "ScatterND with reduction is not supported", "Unsupported reduction type".

A reduction is said by comparing: for each place of the result, all sources whose index is that place. It takes memory
for (places x sources) elements, which the ATen form avoids and TensorRT's operators do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten

_OLD_NAMES = {"add": "sum", "multiply": "prod"}


def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """``x`` with every element of ``src`` reduced into the place along ``dim`` that ``index`` names."""
    if x.dim() == 0:
        return scatter_reduce(
            x.reshape(1), 0, index.reshape(-1), src.reshape(-1), reduce, include_self=include_self
        ).reshape(())
    dim %= x.dim()
    if index.dim() == 0:
        index, src = index.reshape(1), src.reshape(1)
    for axis in range(x.dim()):  # index may be smaller than both
        src = src.narrow(axis, 0, index.shape[axis])
    hits, values = _pairs(x, dim, index, src)
    for axis in range(x.dim()):  # places that no index reaches, in the other dims
        missing = x.shape[axis] - index.shape[axis]
        if axis != dim and not (isinstance(missing, int) and missing == 0):
            hits = _grown(hits, axis, missing)
            values = _grown(values, axis, missing)
    return _reduced(x, dim, hits, values, _OLD_NAMES.get(reduce, reduce), include_self)


def scatter_value(x: Tensor, dim: int, index: Tensor, value: float, *, reduce: str) -> Tensor:
    """:func:`scatter_reduce` of one number."""
    return scatter_reduce(x, dim, index, torch.full_like(index, value, dtype=x.dtype), reduce)


def scatter_two(x: Tensor, dim: int, index: Tensor, src: Tensor, *, reduce: str) -> Tensor:
    """:func:`scatter_reduce` under its older names, ``"add"`` and ``"multiply"``."""
    return scatter_reduce(x, dim, index, src, reduce)


def scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    return scatter_reduce(x, dim, index, src, "sum")


def index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """The same with one index for a whole slice."""
    if x.dim() == 0:
        return scatter_reduce(x, 0, index, source, reduce, include_self=include_self)
    shape = [1] * x.dim()
    shape[dim] = -1
    return scatter_reduce(
        x, dim, index.reshape(shape).expand(source.shape), source, reduce, include_self=include_self
    )


def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """``x`` with ``alpha`` times each slice of ``source`` added to the slice that ``index`` names."""
    return index_reduce(x, dim, index, source if alpha == 1 else source * alpha, "sum")


def index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """``x`` with ``values`` added at the indices of some of its dims, which are next to one another."""
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    index = torch.broadcast_tensors(*[index for index in indices if index is not None])
    lead, count = dims[0], index[0].dim()
    shape = [*x.shape[:lead], *index[0].shape, *x.shape[dims[-1] + 1 :]]
    values = values.to(x.dtype).expand(shape).movedim(list(range(lead, lead + count)), list(range(count)))
    moved = x.movedim(dims, list(range(len(dims))))
    place = torch.zeros_like(index[0])
    for axis, places in enumerate(index):
        extent = moved.shape[axis]
        place = place * extent + torch.where(places < 0, places + extent, places)
    rest = moved.shape[len(dims) :]
    rows, source = moved.reshape(-1, *rest), values.reshape(-1, *rest)
    written = index_reduce(rows, 0, place.reshape(-1), source, "sum")
    return written.reshape(moved.shape).movedim(list(range(len(dims))), dims)


def _adds_at_numbers(node: Node) -> bool:
    """Whether a call adds, at indices that are no masks, of dims next to one another."""
    if len(node.args) < 4 or not node.args[3]:
        return False
    indices: Any = node.args[1]
    given = [dim for dim, index in enumerate(indices) if index is not None]
    adjacent = given == list(range(given[0], given[0] + len(given)))
    return adjacent and all(indices[dim].meta["val"].dtype != torch.bool for dim in given)


def _pairs(x: Tensor, dim: int, index: Tensor, src: Tensor) -> tuple[Tensor, Tensor]:
    """Places at ``dim``, sources in a last axis: whether a source goes to a place, and its value."""
    place = torch.arange(x.shape[dim], device=x.device)
    shape = [1] * (x.dim() + 1)
    shape[dim] = -1
    index = index.movedim(dim, -1).unsqueeze(dim)
    return index == place.reshape(shape), src.to(x.dtype).movedim(dim, -1).unsqueeze(dim)


def _grown(x: Tensor, axis: int, missing: int) -> Tensor:
    shape = list(x.shape)
    shape[axis] = missing
    return torch.cat([x, torch.zeros(shape, dtype=x.dtype, device=x.device)], axis)


def _reduced(x: Tensor, dim: int, hits: Tensor, values: Tensor, reduce: str, include_self: bool) -> Tensor:
    number = hits.to(torch.int64).sum(-1)
    start = x if include_self else torch.where(number > 0, _neutral(reduce, x.dtype), x)
    if reduce in ("sum", "mean"):
        result = start + torch.where(hits, values, 0).sum(-1).to(x.dtype)
        if reduce == "mean":
            divisor = number + (1 if include_self else 0)
            divisor = torch.clamp(divisor, min=1).to(x.dtype)
            whole = not x.is_floating_point()
            result = torch.div(result, divisor, rounding_mode="floor") if whole else result / divisor
        return result
    candidates = torch.where(hits, values, _neutral(reduce, x.dtype))
    if reduce == "prod":
        return start * candidates.prod(-1).to(x.dtype)
    if reduce == "amax":
        return torch.maximum(start, candidates.amax(-1))
    return torch.minimum(start, candidates.amin(-1))


def _neutral(reduce: str, dtype: torch.dtype) -> float | int:
    """What a reduction leaves alone."""
    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    if dtype.is_floating_point:
        return float("-inf") if reduce == "amax" else float("inf")
    if dtype == torch.bool:
        return reduce == "amin"
    return torch.iinfo(dtype).min if reduce == "amax" else torch.iinfo(dtype).max


DECOMPOSITIONS = {
    aten.scatter_reduce.two: scatter_reduce,
    aten.scatter.reduce: scatter_two,
    aten.scatter.value_reduce: scatter_value,
    aten.scatter_add.default: scatter_add,
    aten.index_reduce.default: index_reduce,
    aten.index_add.default: index_add,
    aten.index_put.default: index_put,
}
ONLY_WHERE = {aten.index_put.default: _adds_at_numbers}
