"""Models that no route takes whole, an operator that only PyTorch has, and a function as a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


@torch.library.custom_op("bridge_tests::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) + x.flip(-1)


@twist.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Twisted(nn.Module):
    """TensorRT, PyTorch, TensorRT; the second result crosses from the first part."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16))
        self.head = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.body(x)
        return {"logits": self.head(torch.ops.bridge_tests.twist(h)), "hidden": h}


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class MixtureOfExperts(nn.Module):
    """Each token goes to ``best`` of the experts; how many come to an expert depends on the data, and may be none."""

    def __init__(self, width: int = 16, hidden: int = 32, experts: int = 4, best: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(experts))
        self.best = best

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).reshape(-1, x.shape[-1])
        weights, chosen = torch.softmax(self.router(tokens), -1).topk(self.best, -1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            out = out.index_add(0, token, expert(tokens[token]) * weights[token, place, None])
        return x + out.reshape(x.shape)


class Alone(nn.Module):
    def forward(self, x):
        return torch.ops.bridge_tests.twist(x)


class Halves(nn.Module):
    """A size between the parts that is an expression in the batch, and numbers made from shapes on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 4)

    def forward(self, x):
        h = torch.relu(self.up(x)).reshape(x.shape[0] * 2, 8)
        h = torch.ops.bridge_tests.twist(h)
        h = h + torch.arange(h.shape[0], device=x.device)[:, None]
        return self.down(h).reshape(x.shape[0], -1) * x.shape[0], h.shape[0]


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.body.weight.data.abs_()  # so that the sign of the input decides the branch

    def forward(self, x):
        h = self.body(x)
        h = torch.cond(h.sum() > 0, lambda t: t.sin() * 2, lambda t: t.cos() - 1, (h,))
        return torch.softmax(self.head(h), -1)
