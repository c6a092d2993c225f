"""Matrix products. Without these: TensorRT's "Invalid Node" for matmul of a vector and a batch of matrices, and for
einsum with an ellipsis, with a diagonal, or of other than two tensors; no MatMul of integers (addr)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from .shape import diagonal

aten = torch.ops.aten


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


def addr(x: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * x`` and ``alpha`` times the outer product."""
    product = first.unsqueeze(1) * second.unsqueeze(0)
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product.expand_as(torch.broadcast_tensors(x, product)[1]).clone()
    return (x if beta == 1 else x * beta) + product


def _of_integers(node: Node) -> bool:
    return not node.meta["val"].dtype.is_floating_point


def einsum(equation: str, operands: Sequence[Tensor], *, path: Sequence[int] | None = None) -> Tensor:
    """Two tensors at a time, from the left, each pair as a batched matrix product."""
    terms, result = _letters(equation, operands)
    tensors = []
    for x, term in zip(operands, terms):
        for letter in dict.fromkeys(term):
            while term.count(letter) > 1:
                i, j = [place for place, other in enumerate(term) if other == letter][:2]
                x = diagonal(x, 0, i, j)
                term = [*(other for place, other in enumerate(term) if place not in (i, j)), letter]
        tensors.append((x, term))
    x, term = tensors[0]
    for number, (y, other) in enumerate(tensors[1:], 2):
        needed = set(result).union(*(later for _, later in tensors[number:]))
        x, term = _pair(x, term, y, other, needed)
    gone = [axis for axis, letter in enumerate(term) if letter not in result]
    x = x.sum(gone) if gone else x
    term = [letter for letter in term if letter in result]
    return x.permute([term.index(letter) for letter in result])


def _letters(equation: str, operands: Sequence[Tensor]) -> tuple[list[list[str]], list[str]]:
    """One letter per dim of each tensor and of the result; the dims of an ellipsis are numbered from the right."""
    given, arrow, wanted = equation.replace(" ", "").partition("->")
    terms, widest = [], 0
    for text, x in zip(given.split(","), operands):
        extra = x.dim() - len(text.replace("...", ""))
        widest = max(widest, extra)
        before, dots, after = text.partition("...")
        terms.append([*before, *(str(i) for i in reversed(range(extra if dots else 0))), *after])
    ellipsis = [str(i) for i in reversed(range(widest))]
    if not arrow:
        every = [letter for term in terms for letter in term if not letter.isdigit()]
        return terms, ellipsis + sorted(letter for letter in set(every) if every.count(letter) == 1)
    before, dots, after = wanted.partition("...")
    return terms, [*before, *(ellipsis if dots else []), *after]


def _pair(x: Tensor, first: list[str], y: Tensor, second: list[str], needed: set[str]) -> tuple[Tensor, list[str]]:
    both = [letter for letter in first if letter in second]
    x, first = _summed(x, first, needed.union(both))
    y, second = _summed(y, second, needed.union(both))
    size = {letter: x.shape[axis] for axis, letter in enumerate(first)}
    for axis, letter in enumerate(second):  # one of both may be of size 1
        known = size.setdefault(letter, y.shape[axis])
        size[letter] = y.shape[axis] if isinstance(known, int) and known == 1 else known
    x = x.expand([size[letter] for letter in first])
    y = y.expand([size[letter] for letter in second])
    batch = [letter for letter in both if letter in needed]
    inner = [letter for letter in both if letter not in needed]
    rows = [letter for letter in first if letter not in both]
    columns = [letter for letter in second if letter not in both]

    def flat(z: Tensor, term: list[str], *groups: list[str]) -> Tensor:
        z = z.permute([term.index(letter) for group in groups for letter in group])
        sizes = []
        for group in groups:
            extent = 1
            for letter in group:
                extent = extent * size[letter]
            sizes.append(extent)
        return z.reshape(sizes)

    product = torch.bmm(flat(x, first, batch, rows, inner), flat(y, second, batch, inner, columns))
    term = [*batch, *rows, *columns]
    return product.reshape([size[letter] for letter in term]), term


def _summed(x: Tensor, term: list[str], needed: set[str]) -> tuple[Tensor, list[str]]:
    gone = [axis for axis, letter in enumerate(term) if letter not in needed]
    return (x.sum(gone) if gone else x), [letter for letter in term if letter in needed]


def _more_than_a_product(node: Node) -> bool:
    """Whether an equation has what TensorRT's einsum lacks: an ellipsis, a diagonal, other than two operands."""
    terms = str(node.args[0]).replace(" ", "").split("->")[0].split(",")
    return len(terms) != 2 or any("." in term or len(set(term)) < len(term) for term in terms)


DECOMPOSITIONS = {
    aten.addr.default: addr,
    aten.einsum.default: einsum,
    aten.matmul.default: matmul,
}
ONLY_WHERE = {
    aten.addr.default: _of_integers,
    aten.einsum.default: _more_than_a_product,
    aten.matmul.default: _vector_and_matrices,
}
