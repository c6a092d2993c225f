"""Writing at indices with a reduction, reading by masks and by bags.

Without these: "No ONNX function found" for aten.index_reduce, put, masked_select and nonzero_static; TensorRT takes
neither scatters that reduce (scatter_add, index_add, index_put that adds), nor the NonZero of masked_scatter, nor the
SequenceEmpty of embedding_bag; torch itself leaves diagonal_scatter's graph not functional, and take's not traceable.

A reduction is said by comparing: for each place of the result, all sources whose index is that place. It takes memory
for (places x sources) elements, which the ATen form avoids and TensorRT's operators do not.
"""

from __future__ import annotations

import operator
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


def take(x: Tensor, index: Tensor) -> Tensor:
    """The elements at the places of ``index``, counted through."""
    flat = x.reshape(-1)
    place = torch.where(index < 0, index + flat.shape[0], index)
    return flat.index_select(0, place.reshape(-1)).reshape(index.shape)


def put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """``x`` with ``source`` written (or added) at the places of its elements counted through."""
    flat, index, source = x.reshape(-1), index.reshape(-1), source.reshape(-1)
    index = torch.where(index < 0, index + flat.shape[0], index)
    written = scatter_reduce(flat, 0, index, source, "sum") if accumulate else flat.scatter(0, index, source)
    return written.reshape(x.shape)


def nonzero_static(x: Tensor, *, size: int, fill_value: int = -1) -> Tensor:
    """The first ``size`` places of what is not zero, one per row; rows of ``fill_value`` where there are fewer."""
    flat = x.reshape(-1) != 0
    length = flat.shape[0]
    place = torch.where(flat, torch.arange(length, device=x.device), length)
    place = torch.cat([torch.sort(place)[0], torch.full([size], length, device=x.device)]).narrow(0, 0, size)
    columns = []
    rest = place
    for extent in reversed(x.shape):
        above = torch.div(rest, extent, rounding_mode="floor")
        columns.append(rest - above * extent)
        rest = above
    if not columns:
        return place.new_zeros([size, 0])
    return torch.where((place < length).unsqueeze(-1), torch.stack(columns[::-1], -1), fill_value)


def masked_select(x: Tensor, mask: Tensor) -> Tensor:
    """The elements of ``x`` where ``mask`` holds, in order; how many depends on the data."""
    x, mask = torch.broadcast_tensors(x, mask)
    return aten.index.Tensor(x.reshape(-1), [mask.reshape(-1)])


def diagonal_scatter(x: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """``x`` with ``src`` on a diagonal of two of its dims."""
    planes = x.movedim((dim1, dim2), (-2, -1))
    row = torch.arange(planes.shape[-2], device=x.device)
    column = torch.arange(planes.shape[-1], device=x.device)
    along = torch.clamp(row - max(-offset, 0), min=0)
    along = torch.clamp(along, max=src.shape[-1] - 1)
    on_it = column.unsqueeze(0) - row.unsqueeze(1) == offset
    written = torch.where(on_it, src.index_select(-1, along).unsqueeze(-1), planes)
    return written.movedim((-2, -1), (dim1, dim2))


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n, d), (k,), (b,) to (b, d): the sum (mode 0), mean (1) or maximum (2) of each bag of rows; zero where it is
    empty. Of the other results, that nobody reads, the last two are the bags' sizes."""
    starts = offsets[:-1] if include_last_offset else offsets
    place = torch.arange(indices.shape[0], device=indices.device)
    bag = (starts.unsqueeze(0) <= place.unsqueeze(1)).to(torch.int64).sum(-1) - 1
    inside = bag.unsqueeze(0) == torch.arange(starts.shape[0], device=bag.device).unsqueeze(1)  # b x k
    if include_last_offset:
        inside = inside & (place < offsets[-1]).unsqueeze(0)
    if padding_idx is not None and padding_idx >= -weight.shape[0]:
        ignored = padding_idx if padding_idx >= 0 else padding_idx + weight.shape[0]
        inside = inside & (indices != ignored).unsqueeze(0)
    rows = weight.index_select(0, indices)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    size = inside.to(torch.int64).sum(-1)
    if mode == 2:
        lowest = torch.where(inside.unsqueeze(-1), rows.unsqueeze(0), float("-inf")).amax(1)
        result = torch.where((size > 0).unsqueeze(-1), lowest, 0.0)
    else:
        result = torch.matmul(inside.to(rows.dtype), rows)
        if mode == 1:
            result = result / torch.clamp(size, min=1).unsqueeze(-1).to(rows.dtype)
    return result, bag, size, size


def _for_its_first_result(node: Node) -> bool:
    return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """``x`` with the elements of ``source``, in order, where ``mask`` holds."""
    x, mask = torch.broadcast_tensors(x, mask)
    number = torch.cumsum(mask.reshape(-1).to(torch.int64), 0) - 1
    found = source.reshape(-1).index_select(0, torch.clamp(number, min=0))
    return torch.where(mask, found.reshape(x.shape), x)


DECOMPOSITIONS = {
    aten.masked_scatter.default: masked_scatter,
    aten.diagonal_scatter.default: diagonal_scatter,
    aten.scatter_reduce.two: scatter_reduce,
    aten.scatter.reduce: scatter_two,
    aten.scatter.value_reduce: scatter_value,
    aten.index_reduce.default: index_reduce,
    aten.index_add.default: index_add,
    aten.index_put.default: index_put,
    aten.put.default: put,
    aten.take.default: take,
    aten.scatter_add.default: scatter_add,
    aten.embedding_bag.padding_idx: embedding_bag,
    aten.nonzero_static.default: nonzero_static,
    aten.masked_select.default: masked_select,
}
ONLY_WHERE = {
    aten.index_put.default: _adds_at_numbers,
    aten.embedding_bag.padding_idx: _for_its_first_result,
}
