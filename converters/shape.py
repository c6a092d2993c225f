"""Shapes.

Without these: TensorRT's parser does not take the SequenceConstruct that torch.onnx makes of lists; "No ONNX function
found" for what torch makes of combinations (aten.nonzero_static); TensorRT's "Invalid Node - einsum".
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


def einsum(equation: str, operands: Sequence[Tensor], *, path: Sequence[int] | None = None) -> Tensor:
    """By torch's own rule: permutations, diagonals and batched matrix products."""
    return aten.einsum.default.decompose(equation, operands, path=path)


def _more_than_a_product(node: Node) -> bool:
    """Whether an equation has what TensorRT's einsum lacks: an ellipsis, a diagonal, more or fewer than two operands."""
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
    aten.einsum.default: einsum,
    aten.hstack.default: hstack,
    aten.vstack.default: vstack,
    aten.atleast_1d.Sequence: atleast_1d,
    aten.atleast_2d.Sequence: atleast_2d,
    aten.atleast_3d.Sequence: atleast_3d,
}
ONLY_WHERE = {aten.einsum.default: _more_than_a_product}
