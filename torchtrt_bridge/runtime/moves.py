"""What ``.to()``, ``.cuda()``, ``.half()`` and their like want of a compiled module.

All of them, on the module itself or on one around it, come down to ``nn.Module._apply(fn)``, where ``fn`` makes a new
parameter from an old one. A compiled module has no parameters, so ``fn`` is shown one to see what it wants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch


@dataclasses.dataclass(frozen=True)
class Move:
    """``device`` is the new device, None where it stays; ``ignored`` is what an engine cannot follow, or ``""``."""

    device: torch.device | None
    ignored: str


def wanted(fn: Callable[[torch.Tensor], torch.Tensor], device: torch.device, dtype: torch.dtype) -> Move:
    """What ``fn`` does to a parameter of ``dtype`` on ``device``. What ``fn`` raises (no such device) is raised."""
    probe = torch.empty(1, 2, 2, 2, dtype=dtype, device=device)  # of a rank that has a memory format
    try:
        result = fn(probe)
    except RuntimeError:
        probe = torch.empty(1, 2, 2, 2, 2, dtype=dtype, device=device)  # channels_last_3d takes nothing else
        result = fn(probe)
    ignored = ""
    if result.dtype != dtype:
        ignored = f"a move to {result.dtype}"
    elif result.stride() != probe.stride():
        ignored = "a memory format"
    return Move(result.device if result.device != device else None, ignored)
