"""Norms, powers and inverses of matrices.

Without these: wrong shapes, with no error before verification, of linalg.norm of all that keeps dims and of the power
0; "No ONNX function found" for aten.linalg_inv_ex, so for inverses and negative powers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten

_LARGEST = 16
"""Rows of the largest matrix that is inverted: each is a step of some ten operators."""


def norm(
    x: Tensor,
    ord: float | None = None,  # noqa: A002
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The norm of all elements, as of one vector; with ``ord``, of a vector."""
    return torch.linalg.vector_norm(x, 2 if ord is None else ord, list(range(x.dim())), keepdim, dtype=dtype)


def _of_all_as_a_vector(node: Node) -> bool:
    x = node.args[0].meta["val"]  # type: ignore[union-attr]
    ord_, dim = [*node.args[1:3], None, None][:2]
    return dim is None and x.dim() > 0 and (ord_ is None or x.dim() == 1)


def matrix_power(x: Tensor, n: int) -> Tensor:
    """The product of ``n`` of the matrices (..., k, k), by squaring; of their inverses where ``n`` is negative."""
    if n < 0:
        return matrix_power(inverse(x), -n)
    place = torch.arange(x.shape[-1], device=x.device)
    result, square = (place.unsqueeze(-1) == place).to(x.dtype).expand(x.shape).clone(), x
    first = True
    while n:
        if n % 2:
            result, first = square if first else torch.matmul(result, square), False
        n //= 2
        square = torch.matmul(square, square) if n else square
    return result.clone() if result is x else result


def inverse(x: Tensor) -> Tensor:
    """The inverses of matrices (..., k, k), k fixed, by Gauss and Jordan's elimination with the largest pivots."""
    size = x.shape[-1]
    place = torch.arange(size, device=x.device)
    identity = (place.unsqueeze(-1) == place).to(x.dtype).expand(x.shape)
    rows = torch.cat([x, identity], -1)  # k x 2k
    for step in range(size):
        column = torch.where(place >= step, rows.select(-1, step).abs(), -1.0)
        pivot = (place == column.argmax(-1, keepdim=True)).unsqueeze(-1)
        here = (place == step).unsqueeze(-1)
        chosen = torch.where(pivot, rows, 0.0).sum(-2, keepdim=True)
        swapped = torch.where(pivot, rows.narrow(-2, step, 1), rows)
        chosen = chosen / chosen.narrow(-1, step, 1)
        rows = torch.where(here, chosen, swapped - swapped.narrow(-1, step, 1) * chosen)
    return rows.narrow(-1, size, size)


def inverse_and_info(x: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """:func:`inverse`, and zeros, which say that all went well; nothing says so of a singular matrix."""
    return inverse(x), torch.zeros(x.shape[:-2], dtype=torch.int32, device=x.device)


def _is_small(node: Node) -> bool:
    size = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
    return isinstance(size, int) and size <= _LARGEST


def _is_small_or_not_negative(node: Node) -> bool:
    return int(node.args[1]) >= 0 or _is_small(node)  # type: ignore[arg-type]


_INVERSES = {
    aten.inverse.default: inverse,
    aten.linalg_inv.default: inverse,
    aten.linalg_inv_ex.default: inverse_and_info,
}
DECOMPOSITIONS = {aten.linalg_norm.default: norm, aten.linalg_matrix_power.default: matrix_power, **_INVERSES}
ONLY_WHERE = {
    aten.linalg_norm.default: _of_all_as_a_vector,
    aten.linalg_matrix_power.default: _is_small_or_not_negative,
    **dict.fromkeys(_INVERSES, _is_small),
}
