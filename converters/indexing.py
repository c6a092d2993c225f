"""Reading and writing by masks, by places counted through, and by bags.

Without these: "No ONNX function found" for aten.put, masked_select and nonzero_static; TensorRT takes neither the
NonZero of masked_scatter nor the SequenceEmpty of embedding_bag; torch itself leaves diagonal_scatter's graph not
functional, and take's not traceable.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Node

from .scattering import scatter_reduce

aten = torch.ops.aten

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
    aten.put.default: put,
    aten.take.default: take,
    aten.embedding_bag.padding_idx: embedding_bag,
    aten.nonzero_static.default: nonzero_static,
    aten.masked_select.default: masked_select,
}
ONLY_WHERE = {
    aten.embedding_bag.padding_idx: _for_its_first_result,
}
