"""Losses.

Without these: TensorRT's "Invalid Node" for the mean that cosine_embedding_loss takes of one number; an overflow in
float16 in soft_margin_loss, where eager has none.
"""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten

_MEAN, _SUM = 1, 2  # torch's numbers of reductions; 0 is none


def cosine_embedding_loss(x: Tensor, y: Tensor, target: Tensor, margin: float = 0.0, reduction: int = _MEAN) -> Tensor:
    """(n, d), (n, d), (n): one minus the cosine where ``target`` is 1, what it has above ``margin`` where it is -1."""
    dim = target.dim()
    norms = (x * x).sum(dim).add(1e-12) * (y * y).sum(dim).add(1e-12)
    cosine = (x * y).sum(dim) / torch.sqrt(norms)
    alike = torch.where(target == 1, 1 - cosine, 0.0)
    return _reduced(alike + torch.where(target == -1, torch.clamp(cosine - margin, min=0), 0.0), reduction)


def soft_margin_loss(x: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    """``log(1 + exp(-target * x))``, by an exponential of at most 1."""
    z = -target * x
    return _reduced(torch.clamp(z, min=0) + torch.log1p(torch.exp(-z.abs())), reduction)


def _reduced(loss: Tensor, reduction: int) -> Tensor:
    if not loss.dim() or reduction not in (_MEAN, _SUM):
        return loss
    return loss.mean() if reduction == _MEAN else loss.sum()


DECOMPOSITIONS = {
    aten.cosine_embedding_loss.default: cosine_embedding_loss,
    aten.soft_margin_loss.default: soft_margin_loss,
}
