"""A backward pass that reaches an engine ends in an error that says so, instead of in silence or a missing gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from ..errors import NotTrainable

_MESSAGE = (
    "A gradient was asked for through a compiled module, and an engine has no backward pass. Call the module under"
    " torch.no_grad() or on x.detach() if what comes before it needs no gradient; to train, use the original model and"
    " compile it again afterwards."
)


def needed(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether autograd would record a call with these inputs."""
    return torch.is_grad_enabled() and (forward_ad._current_level >= 0 or any(t.requires_grad for t in tensors))


def refused(tensors: Sequence[torch.Tensor], outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """``outputs``, such that a gradient asked through them raises NotTrainable."""
    return list(_Refuse.apply(outputs, *tensors))


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: list[torch.Tensor], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.mark_non_differentiable(*[t for t in outputs if not (t.is_floating_point() or t.is_complex())])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotTrainable(_MESSAGE)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotTrainable(_MESSAGE)
