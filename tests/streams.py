"""Models whose activations are large: finite in fp32, and a trap for 16 bits."""

from __future__ import annotations

import torch
from torch import nn


class RMSNorm(nn.Module):
    """Written by hand: the squares of a stream of 1e4 are 1e8, which float16 has not."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Standardize(nn.Module):
    """A layer normalization in its parts, with the variance as the mean of squares."""

    def __init__(self, width):
        super().__init__()

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().sum(-1, keepdim=True) / x.shape[-1] + 1e-6).sqrt()


class Unit(nn.Module):
    """Rows of length 1."""

    def __init__(self, width):
        super().__init__()

    def forward(self, x):
        return nn.functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5


NORMS = {"LayerNorm": nn.LayerNorm, "RMSNorm": RMSNorm, "parts": Standardize, "unit": Unit}


class Stream(nn.Module):
    """A residual stream of 1e4 through blocks that normalize what they read of it."""

    def __init__(self, norm, width=64, blocks=2, level=1e4):
        super().__init__()
        self.level = level
        self.stem = nn.Linear(width, width)
        self.norms = nn.ModuleList(norm(width) for _ in range(blocks + 1))
        self.ups = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        self.downs = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(blocks))
        self.head = nn.Linear(width, 8)

    def forward(self, x):
        stream = self.stem(x) * self.level
        for norm, up, down in zip(self.norms, self.ups, self.downs):
            stream = stream + down(nn.functional.gelu(up(norm(stream)))) * self.level
        return self.head(self.norms[-1](stream))
