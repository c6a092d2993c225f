"""Small models whose results fp16 loses, and the fewest layers to raise, found by trying all sets."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from torchtrt_bridge.capture import CapturedModel
from torchtrt_bridge.tools.candidates import Candidates, error_against


class Block(nn.Module):
    """Between its two layers values are as large as ``scale``; its result is of the size of its input."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        with torch.no_grad():
            self.up.weight *= scale
            self.down.weight /= scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Between(nn.Sequential):
    """Overflows between the two layers of its second block."""

    def __init__(self) -> None:
        super().__init__(Block(1.0), Block(1e5), nn.Linear(16, 4))


class Stream(nn.Module):
    """A residual stream that starts at some 1e4 and passes 65504 in the model's own additions, before a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.inner, self.outer, self.head = nn.LayerNorm(16), nn.LayerNorm(16), nn.Linear(16, 4)
        with torch.no_grad():
            for layer, size in ((self.embed, 2e4), (self.first, 4e4), (self.second, 5e4)):
                layer.weight *= 0.01
                layer.bias.copy_(torch.randn(16).sign() * size + torch.randn(16) * 1e3)
            self.second.bias.copy_(self.first.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        h = h + self.first(self.inner(h))
        return self.head(self.outer(h + self.second(self.inner(h))))


class Uneven(nn.Sequential):
    """Three layers that int8 rounds more or less; the last stays as it is."""

    def __init__(self) -> None:
        layers = nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()
        super().__init__(*layers, nn.Linear(16, 4))
        with torch.no_grad():
            self[0].weight[0] *= 200
            self[2].weight[:, 0] *= 300


def made(kind: type[nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = kind().eval()
    return model, torch.randn(4, 8 if kind is Stream else 16)


def fewest_by_trying_all(captured: CapturedModel, target_error: float) -> int:
    """The size of the smallest set of layers that meets the target."""
    candidates = Candidates(captured, "fp16", "fp32", lambda precision: (captured, precision))
    expected = captured.eager(captured.inputs)
    for count in range(len(candidates.layers) + 1):
        for raised in itertools.combinations(candidates.layers, count):
            actual = candidates.module(raised).run_flat(captured.inputs)
            if error_against(expected, actual) <= target_error:
                return count
    raise AssertionError("no set meets the target")
