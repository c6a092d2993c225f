"""The table of what people do to modules: what a trainable model does then, what a compiled one does, and a test.

``rows()`` is the table; the files ``*_rows.py`` fill it. Every row is a test (``test_dropin.py``), on the CPU and on a
GPU, and a line of ``docs/dropin.md``, which ``python tests/dropin/dropin_table.py`` writes.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchtrt_bridge as ttb

PAGE = Path(__file__).parents[2] / "docs" / "dropin.md"
_FILES = ("moves_rows", "modes_rows", "layers_rows", "state_rows", "calls_rows", "tracing_rows", "process_rows")
_rows: list[Row] = []


class Net(nn.Module):
    """Images to scores, with an optional tensor, a flag, and the attributes that people read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.num_classes = 2

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, *, double: bool = False) -> torch.Tensor:
        x = torch.relu(self.norm(self.body(x))).mean((2, 3))
        if scale is not None:
            x = x * scale
        return self.head(x) * (2 if double else 1)


@dataclasses.dataclass
class Case:
    """A model and what became of it, both for one test alone; ``folder`` is an empty one."""

    model: Net
    fast: ttb.TRTModule
    x: torch.Tensor
    folder: Path

    @property
    def device(self) -> torch.device:
        return self.x.device

    def head(self) -> nn.Linear:
        """A layer to put behind the module."""
        return nn.Linear(2, 3).to(self.device)

    def eager(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.no_grad():
            return self.model(*(args or (self.x,)), **kwargs)

    def right(self, result: torch.Tensor | None = None) -> None:
        """``result``, or that of a call, has eager's numbers."""
        close(self.fast(self.x) if result is None else result, self.eager())

    def copies(self) -> tuple[Net, ttb.TRTModule]:
        return copy.deepcopy(self.model), copy.deepcopy(self.fast)


@dataclasses.dataclass(frozen=True)
class Row:
    group: str
    action: str
    eager: str
    ours: str
    check: Callable[[Case], None]

    @property
    def name(self) -> str:
        return self.check.__name__


def row(group: str, action: str, eager: str, ours: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Add a row whose test is the decorated function."""

    def add(check: Callable[[Case], None]) -> Callable[[Case], None]:
        _rows.append(Row(group, action, eager, ours, check))
        return check

    return add


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-4, atol=1e-5)


def rows() -> list[Row]:
    """The whole table, in the order of its page."""
    for name in _FILES:
        importlib.import_module(name)
    return _rows


def page() -> str:
    """docs/dropin.md."""
    lines = [_HEAD.format(count=len(rows()))]
    groups = list(dict.fromkeys(r.group for r in rows()))
    for group in groups:
        lines += [f"\n## {group}\n", "| what people do | a model | a compiled module |", "|---|---|---|"]
        lines += [f"| {r.action} | {r.eager} | {r.ours} |" for r in rows() if r.group == group]
    return "\n".join(lines) + "\n"


_HEAD = """# What people do to modules

A compiled module lives where the model lived. This is what comes of {count} things that people, `transformers`, `timm`,
Lightning and `accelerate` do to modules. Every line is a test in `tests/dropin/`, on the CPU and on the GPU, and this
page is written from them (`python tests/dropin/dropin_table.py`). `fast` is a compiled module; errors are those of
`torchtrt_bridge.errors` unless another is named."""


if __name__ == "__main__":
    from dropin_table import page as whole  # the rows register with the module of that name, not with __main__

    PAGE.write_text(whole(), "utf-8")
