"""Tiny models with what quantization treats in its own way, and data for them."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """Convolutions with batch norm, a residual sum, attention, a linear layer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.down = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(torch.relu(self.bn(self.conv1(x)))) + self.down(x)
        h = torch.relu(h).flatten(2).transpose(1, 2)
        return self.fc(self.attention(h, h, h, need_weights=False)[0].mean(1))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.LayerNorm(64), nn.Linear(64, 8)
    ).eval()  # fmt: skip


def error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Relative L2."""
    return ((expected - actual).double().norm() / expected.double().norm()).item()
