"""Losses against class indices, in operators that TensorRT's ONNX parser takes.

Models of ``transformers`` return a loss where labels are among their inputs. torch.onnx writes it as
SoftmaxCrossEntropyLoss, which TensorRT has not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_NONE, _MEAN = 0, 1  # torch's numbers of reductions; 2 is the sum


def _cross_entropy(
    scores: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    classes = 1 if scores.ndim > 1 else 0
    log = torch.log_softmax(scores, classes)
    if not target.is_floating_point():
        return _negative_log_likelihood(log, target, weight, reduction, ignore_index, label_smoothing)
    count = scores.shape[classes]
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / count
    weighted = log * target if weight is None else log * target * _along(weight, log, classes)
    loss = -weighted.sum(classes)
    if reduction == _NONE:
        return loss
    return loss.mean() if reduction == _MEAN else loss.sum()


def _negative_log_likelihood(
    log: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    classes = 1 if log.ndim > 1 else 0
    counted = target != ignore_index
    chosen = torch.where(counted, target, 0)
    picked = log.gather(classes, chosen.unsqueeze(classes)).squeeze(classes)
    share = torch.ones_like(picked) if weight is None else weight.index_select(0, chosen.reshape(-1)).view_as(picked)
    share = torch.where(counted, share, 0)
    loss = -picked * share
    if label_smoothing:
        every = log if weight is None else log * _along(weight, log, classes)
        smooth = torch.where(counted, -every.sum(classes), 0)
        loss = loss * (1 - label_smoothing) + smooth * (label_smoothing / log.shape[classes])
    if reduction == _NONE:
        return loss
    return loss.sum() / share.sum() if reduction == _MEAN else loss.sum()


def _along(weight: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    return weight.view([-1 if i == axis else 1 for i in range(like.ndim)])


DECOMPOSITIONS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.aten.cross_entropy_loss.default: _cross_entropy,
    torch.ops.aten.nll_loss_nd.default: _negative_log_likelihood,
    torch.ops.aten.nll_loss.default: _negative_log_likelihood,
    torch.ops.aten.nll_loss2d.default: _negative_log_likelihood,
}
