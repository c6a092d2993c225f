"""A captured graph run by PyTorch, as it is, and on the intermediate results of a compiled module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import InvalidInput


class Eager(torch.fx.Interpreter):
    """Runs the captured graph as it is; ``tensors`` are its results at ``nodes``, on the CPU."""

    def __init__(self, graph: torch.fx.GraphModule, nodes: set[str]):
        super().__init__(graph)
        self._nodes = nodes
        self.tensors: dict[str, torch.Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._nodes:
            self.tensors[n.name] = value.cpu()
        return value


class Forced(torch.fx.Interpreter):
    """Runs the captured graph on the compiled module's intermediate results.

    Each layer computes from those before it, and its own result gives way to the compiled one as soon as it is
    compared. ``own`` has, by node, the relative L2, and whether the compiled layer made a NaN or Inf of finite numbers.
    """

    def __init__(self, graph: torch.fx.GraphModule, compiled: Mapping[str, torch.Tensor]):
        super().__init__(graph)
        self._compiled = compiled
        self.own: dict[str, tuple[float, bool]] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n.name not in self._compiled:
            return value
        given = self._compiled[n.name].to(value.device, value.dtype)
        if given.shape != value.shape:
            raise InvalidInput(f"The layer {n.name} gives {list(given.shape)}, and eager's {list(value.shape)}.")
        _, error, _, nonfinite = errors_of(given, value)
        self.own[n.name] = error, bool(nonfinite)
        return given


def errors_of(actual: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float, float, int]:
    """Largest error, relative L2, cosine, and how many elements are NaN or Inf, over those that are finite in
    ``wanted``. NaN stands for an error that nothing is left to tell from."""
    finite = wanted.isfinite()
    a, b = actual[finite].double(), wanted[finite].double()
    if not b.numel():
        return math.nan, math.nan, math.nan, 0
    nonfinite = int((~a.isfinite()).sum())
    if nonfinite:
        return math.inf, math.inf, math.nan, nonfinite
    error, scale = (a - b).norm().item(), b.norm().item()
    both = a.norm().item() * scale
    cosine = (a @ b).item() / both if both else float(error == 0)
    return (a - b).abs().max().item(), error / scale if scale else error, cosine, 0
