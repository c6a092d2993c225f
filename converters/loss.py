"""Losses. Without this: TensorRT's parser does not take SoftmaxCrossEntropyLoss."""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def cross_entropy_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """By torch's own rule: log_softmax, then the loss of what is picked."""
    return aten.cross_entropy_loss.default.decompose(x, target, weight, reduction, ignore_index, label_smoothing)


DECOMPOSITIONS = {aten.cross_entropy_loss.default: cross_entropy_loss}
