"""Distances between rows. Without these: "No ONNX function found" for aten._cdist_forward and _pdist_forward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

aten = torch.ops.aten


def cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """(..., n, d) and (..., m, d) to (..., n, m): the p-norms of all differences."""
    return _norm((x.unsqueeze(-2) - y.unsqueeze(-3)).abs(), p)


def pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """(n, d) to n * (n - 1) / 2: the p-norms of the differences of each pair of rows, n fixed."""
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1).unbind(0)
    return _norm((x.index_select(0, first.to(x.device)) - x.index_select(0, second.to(x.device))).abs(), p)


def _norm(size: Tensor, p: float) -> Tensor:
    if p == 0:
        return (size != 0).to(size.dtype).sum(-1)
    if p == 1:
        return size.sum(-1)
    if math.isinf(p):
        return size.amax(-1)
    if p == 2:
        return (size * size).sum(-1).sqrt()
    return size.pow(p).sum(-1).pow(1 / p)


DECOMPOSITIONS = {
    aten.cdist.default: cdist,
    aten._cdist_forward.default: cdist,
    aten.pdist.default: pdist,
    aten._pdist_forward.default: pdist,
}
