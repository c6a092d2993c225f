"""What ttb.tune_precision() measures of a module, and what it has to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InvalidOption
from .candidates import error_against

Metric = Callable[[nn.Module], float]


class Goal:
    """What is measured of a module, and what it has to be."""

    def __init__(self, name: str, limit: float, metric: Metric | None):
        self.name, self.limit, self._metric = name, limit, metric

    @classmethod
    def of(cls, target_error: Any, metric: Any, target: Any) -> Goal:
        """Raises InvalidOption unless there is either an error or a metric with its target."""
        if (target_error is None) == (metric is None) or (metric is None) != (target is None):
            raise InvalidOption(
                "tune_precision() needs target_error=, the largest relative L2 error against eager, or metric= with"
                " target=, the least that metric(module) may be."
            )
        if metric is None:
            if not isinstance(target_error, (int, float)) or not 0 < target_error < math.inf:
                raise InvalidOption(f"target_error={target_error!r}: a relative L2 error is a number above 0.")
            return cls("relative L2", float(target_error), None)
        if not callable(metric) or not isinstance(target, (int, float)):
            raise InvalidOption(f"metric={metric!r}, target={target!r}: give a function of a module, and a number.")
        return cls(getattr(metric, "__qualname__", type(metric).__qualname__), float(target), metric)

    def passes(self, score: float) -> bool:
        return score <= self.limit if self._metric is None else score >= self.limit

    def score(self, module: Any, inputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
        """Of a compiled module or a candidate."""
        if self._metric is not None:
            return float(self._metric(module))
        return error_against(expected, module.run_flat(inputs))
