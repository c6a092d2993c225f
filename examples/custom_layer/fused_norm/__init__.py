"""A residual addition and an RMS norm in one operator: a Triton kernel on GPUs, plain PyTorch elsewhere.

    normalized, total = torch.ops.fused_norm.add_rms_norm(x, residual, weight, eps)

This package knows nothing of TensorRT but in ``fused_norm/converters.py``, which only torchtrt_bridge imports.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.library.custom_op("fused_norm::add_rms_norm", mutates_args=(), device_types="cpu")
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(rms_norm(x + residual) * weight, x + residual)``, the norm over the last axis, its mean in fp32."""
    total = x + residual
    scale = torch.rsqrt(total.float().square().mean(-1, keepdim=True) + eps)
    return (total.float() * scale).to(x.dtype) * weight, total


@add_rms_norm.register_kernel("cuda")
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from .kernel import launch  # Triton is there where a GPU is

    return launch(x, residual, weight, eps)


@add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


class AddRMSNorm(nn.Module):
    """The operator as a layer, with its weight. Both results have the shape of ``x``, ``(..., width)``."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        normalized, total = torch.ops.fused_norm.add_rms_norm(x, residual, self.weight, self.eps)
        return normalized, total


class Block(nn.Module):
    """Two layers of a transformer's feed-forward half, to have a model: ``(batch, length, width)`` to the same."""

    def __init__(self, width: int = 64, hidden: int = 128):
        super().__init__()
        self.project = nn.Linear(width, width)
        self.norm = AddRMSNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        normalized, total = self.norm(self.project(x), x)
        return total + self.down(torch.nn.functional.silu(self.up(normalized)))
