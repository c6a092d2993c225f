"""Modules that put a :class:`.flattener.Flattener` around another module."""

from __future__ import annotations

from typing import Any

from torch import nn

from .flattener import Flattener


class _Around(nn.Module):
    def __init__(
        self,
        module: nn.Module,
        input_flattener: Flattener | None = None,
        output_flattener: Flattener | None = None,
    ):
        super().__init__()
        self.module = module
        self.input_flattener = input_flattener
        self.output_flattener = output_flattener


class Flatten(_Around):
    """``module`` called with flat tensors, giving flat tensors."""

    def forward(self, *args: Any) -> Any:
        if self.input_flattener is not None:
            args = self.input_flattener.unflatten(args)
        output = self.module(*args)
        return output if self.output_flattener is None else self.output_flattener.flatten(output)


class Unflatten(_Around):
    """A ``module`` of flat tensors, called with nested ones and giving nested ones."""

    def forward(self, *args: Any) -> Any:
        flat = args if self.input_flattener is None else self.input_flattener.flatten(args)
        output = self.module(*flat)
        return output if self.output_flattener is None else self.output_flattener.unflatten(output)
