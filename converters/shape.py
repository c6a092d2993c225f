"""Shapes.

Without these: TensorRT's parser does not take the SequenceConstruct that torch.onnx makes of lists, nor EyeLike
(diagonals) or Squeeze of a dynamic size; "No ONNX function found" for what torch makes of combinations.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten


def atleast_1d(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each with one dim at least."""
    return [x.reshape(1) if x.dim() == 0 else x.clone() for x in tensors]


def atleast_2d(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each with two dims at least, new ones in front."""
    return [x.reshape(1, -1) if x.dim() < 2 else x.clone() for x in tensors]


def atleast_3d(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each with three dims at least: a vector becomes (1, n, 1), a matrix (m, n, 1)."""
    return [
        x.reshape(1, -1, 1) if x.dim() < 2 else x.unsqueeze(-1) if x.dim() == 2 else x.clone() for x in tensors
    ]


def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1, 1) if x.dim() < 2 else x for x in tensors], 1)


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    tensors = atleast_1d(tensors)
    return torch.cat(tensors, 0 if tensors[0].dim() == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(atleast_2d(tensors), 0)


def dstack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(atleast_3d(tensors), 2)


def squeeze(x: Tensor) -> Tensor:
    """Without the dims of size 1; a dynamic one is not of size 1."""
    for dim in reversed(range(x.dim())):
        if isinstance(x.shape[dim], int) and x.shape[dim] == 1:
            x = x.select(dim, 0)
    return x


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements of two dims on one diagonal, in a last dim."""
    planes = x.movedim((dim1, dim2), (-2, -1))
    rows, columns = planes.shape[-2:]
    row, column = max(-offset, 0), max(offset, 0)
    length = torch.sym_min(rows - row, columns - column)
    place = torch.arange(length, device=x.device) * (columns + 1) + (row * columns + column)
    return planes.flatten(-2).index_select(-1, place)


def linalg_diagonal(x: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    return diagonal(x, offset, dim1, dim2)


def diag(x: Tensor, offset: int = 0) -> Tensor:
    """A vector's matrix, a matrix's vector."""
    return torch.diag_embed(x, offset) if x.dim() == 1 else diagonal(x, offset)


def trace(x: Tensor) -> Tensor:
    total = diagonal(x).sum()
    return total if x.is_floating_point() else total.to(torch.int64)


def roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    """Shifted along some dims, by no more than their sizes; what leaves at one end comes in at the other."""
    for shift, dim in zip(shifts, dims):
        size = x.shape[dim]
        place = torch.arange(size, device=x.device) - shift
        place = torch.where(place < 0, place + size, torch.where(place >= size, place - size, place))
        x = x.index_select(dim, place)
    return x


def fftshift(x: Tensor, dim: Sequence[int] | None = None) -> Tensor:
    dims = list(range(x.dim())) if dim is None else list(dim)
    return roll(x, [x.shape[d] // 2 for d in dims], dims)


def ifftshift(x: Tensor, dim: Sequence[int] | None = None) -> Tensor:
    dims = list(range(x.dim())) if dim is None else list(dim)
    return roll(x, [(x.shape[d] + 1) // 2 for d in dims], dims)


def _by_a_size(node: Node) -> bool:
    """Whether a shift is made from a dynamic size, half of it for one."""
    return len(node.args) > 2 and any(isinstance(shift, Node) for shift in node.args[1])  # type: ignore[union-attr]


def _dynamic(node: Node) -> bool:
    return any(not isinstance(size, int) for size in node.args[0].meta["val"].shape)  # type: ignore[union-attr]


def combinations(x: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """(n,) to (number of combinations, r), n fixed."""
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    rows = list(choose(range(x.shape[0]), r))
    places = torch.cat([torch.full([1], place, device=x.device) for row in rows for place in row])
    return x.index_select(0, places).reshape(len(rows), r)


DECOMPOSITIONS = {
    aten.column_stack.default: column_stack,
    aten.combinations.default: combinations,
    aten.dstack.default: dstack,
    aten.diag.default: diag,
    aten.diagonal.default: diagonal,
    aten.diagonal_copy.default: diagonal,
    aten.linalg_diagonal.default: linalg_diagonal,
    aten.fft_fftshift.default: fftshift,
    aten.fft_ifftshift.default: ifftshift,
    aten.roll.default: roll,
    aten.squeeze.default: squeeze,
    aten.trace.default: trace,
    aten.hstack.default: hstack,
    aten.vstack.default: vstack,
    aten.atleast_1d.Sequence: atleast_1d,
    aten.atleast_2d.Sequence: atleast_2d,
    aten.atleast_3d.Sequence: atleast_3d,
}
ONLY_WHERE = {
    aten.fft_fftshift.default: _dynamic,
    aten.fft_ifftshift.default: _dynamic,
    aten.roll.default: _by_a_size,
    aten.diag.default: _dynamic,
    aten.diagonal.default: _dynamic,
    aten.diagonal_copy.default: _dynamic,
    aten.linalg_diagonal.default: _dynamic,
    aten.squeeze.default: _dynamic,
    aten.trace.default: _dynamic,
}
