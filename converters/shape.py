"""Shapes.

Without these: TensorRT's parser does not take the SequenceConstruct that torch.onnx makes of lists; "No ONNX function
found" for what torch makes of combinations (aten.nonzero_static); TensorRT's "Invalid Node" for einsum, and for
matmul of a vector and a batch of matrices, and no EyeLike (diagonals) or Squeeze of a dynamic size.
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


def _dynamic(node: Node) -> bool:
    return any(not isinstance(size, int) for size in node.args[0].meta["val"].shape)  # type: ignore[union-attr]


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """The product of a vector and matrices, of matrices and a vector, of matrices."""
    first, last = x.dim() == 1, y.dim() == 1
    x, y = x.unsqueeze(0) if first else x, y.unsqueeze(-1) if last else y
    lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    rows, columns = x.shape[-2], y.shape[-1]
    x = x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
    y = y.expand(*lead, *y.shape[-2:]).reshape(-1, *y.shape[-2:])
    result = torch.bmm(x, y).reshape(*lead, rows, columns)
    result = result.squeeze(-1) if last else result
    return result.squeeze(-1 if last else -2) if first else result


def _vector_and_matrices(node: Node) -> bool:
    dims = sorted(n.meta["val"].dim() for n in node.args if isinstance(n, Node))
    return len(dims) == 2 and dims[0] == 1 and dims[1] > 2


def einsum(equation: str, operands: Sequence[Tensor], *, path: Sequence[int] | None = None) -> Tensor:
    """By torch's own rule: permutations, diagonals and batched matrix products."""
    return aten.einsum.default.decompose(equation, operands, path=path)


def _more_than_a_product(node: Node) -> bool:
    """Whether an equation has what TensorRT's einsum lacks: an ellipsis, a diagonal, other than two operands."""
    terms = str(node.args[0]).replace(" ", "").split("->")[0].split(",")
    return len(terms) != 2 or any("." in term or len(set(term)) < len(term) for term in terms)


def combinations(x: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """(n,) to (number of combinations, r), n fixed."""
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    rows = list(choose(range(x.shape[0]), r))
    places = torch.tensor([place for row in rows for place in row], dtype=torch.int64, device=x.device)
    return x.index_select(0, places).reshape(len(rows), r)


DECOMPOSITIONS = {
    aten.column_stack.default: column_stack,
    aten.combinations.default: combinations,
    aten.dstack.default: dstack,
    aten.diag.default: diag,
    aten.diagonal.default: diagonal,
    aten.diagonal_copy.default: diagonal,
    aten.einsum.default: einsum,
    aten.linalg_diagonal.default: linalg_diagonal,
    aten.matmul.default: matmul,
    aten.squeeze.default: squeeze,
    aten.trace.default: trace,
    aten.hstack.default: hstack,
    aten.vstack.default: vstack,
    aten.atleast_1d.Sequence: atleast_1d,
    aten.atleast_2d.Sequence: atleast_2d,
    aten.atleast_3d.Sequence: atleast_3d,
}
ONLY_WHERE = {
    aten.einsum.default: _more_than_a_product,
    aten.matmul.default: _vector_and_matrices,
    **dict.fromkeys(
        (
            aten.diag.default,
            aten.diagonal.default,
            aten.diagonal_copy.default,
            aten.linalg_diagonal.default,
            aten.squeeze.default,
            aten.trace.default,
        ),
        _dynamic,
    ),
}
