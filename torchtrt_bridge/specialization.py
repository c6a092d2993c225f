"""Why a dimension that was to be dynamic is not: which one, and at which line of the user's code.

torch.export says which constraint is violated, but rarely where: the guards it records point into torch itself. While
the model is traced, :class:`Guards` makes its ShapeEnv (that one object) look further up the stack, to the first frame
outside torch.
"""

from __future__ import annotations

import linecache
import os
import re
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch

from .dynamic import DynamicShapes
from .errors import DimSpecialized

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep


class Guards:
    """The guards of one trace: the ShapeEnv, and the symbol of each dynamic dim."""

    def __init__(self, dynamic: DynamicShapes):
        self._dynamic = dynamic
        self.shape_env: Any = None
        self.symbols: dict[str, str] = {}
        self.user_frame: tuple[str, int, str] | None = None

    def watch(self, tensors: Sequence[torch.Tensor]) -> None:
        """Called with the fake inputs at the start of a trace."""
        for tensor, axes in zip(tensors, self._dynamic.axes):
            for axis, name in axes.items():
                size = tensor.shape[axis]
                if isinstance(size, torch.SymInt):
                    self.symbols[str(size.node.expr)] = name
                    self.shape_env = size.node.shape_env
        if hasattr(self.shape_env, "_get_user_frame"):
            self.shape_env._get_user_frame = _user_frame

    def stop(self) -> None:
        """Take the instance attribute off the ShapeEnv, which lives on in the exported program."""
        if self.shape_env is not None:
            self.shape_env.__dict__.pop("_get_user_frame", None)

    def lines(self) -> dict[str, list[tuple[str, str]]]:
        """For each dim the guards that restrict it: (condition in dim names, ``file.py:12 in forward: code``)."""
        found: dict[str, list[tuple[str, str]]] = {}
        for guard in getattr(self.shape_env, "guards", ()):
            location = getattr(getattr(guard, "sloc", None), "framework_loc", None)
            if location is None or isinstance(location, str) or location.filename.startswith(_TORCH):
                continue
            code = linecache.getline(location.filename, location.lineno or 0).strip()
            place = f"{os.path.basename(location.filename)}:{location.lineno} in {location.name}: {code}"
            condition = str(guard.expr)
            for symbol, name in self.symbols.items():
                if re.search(rf"\b{symbol}\b", condition):
                    renamed = re.sub(r"[A-Za-z_]\w*", lambda m: self.symbols.get(m[0], m[0]), condition)
                    found.setdefault(name, []).append((renamed, place))
        return found

    def last_user_line(self) -> str:
        """Where the trace stood when it failed, if the exception being handled passed through the user's code."""
        traceback = sys.exc_info()[2]
        place = ""
        while traceback is not None:
            frame = traceback.tb_frame
            name = frame.f_code.co_filename
            if not name.startswith((_TORCH, _HERE)) and not name.startswith("<"):
                code = linecache.getline(name, traceback.tb_lineno).strip()
                place = f"\n  at {name}:{traceback.tb_lineno} in {frame.f_code.co_name}: {code}"
            traceback = traceback.tb_next
        return place


def explain_specialization(error: Exception, guards: Guards, dynamic: DynamicShapes) -> DimSpecialized | None:
    """The error for a dim that the model's code fixes or restricts, or None if ``error`` is about something else."""
    text = str(error)
    head = re.search(r"Constraints violated \(([^)]*)\)", text)
    if head is None:
        return None
    violated = [name.strip() for name in head[1].split(",")]
    names = [name for name in dynamic.dims if name in violated] or list(dynamic.dims)
    lines = guards.lines()
    parts = []
    for name in names:
        dim = dynamic.dims[name]
        places = [
            f"axis {axis} of {input_name!r}"
            for input_name, axes in zip(dynamic.names, dynamic.axes)
            for axis, dim_name in axes.items()
            if dim_name == name
        ]
        fixed = re.search(rf"You marked {name} as dynamic but .* specialized it to be a constant \((\d+)\)", text)
        what = f"fixes it to {fixed[1]}" if fixed else "does not take every size in that range"
        parts.append(
            f"The dim {name!r} ({', '.join(places)}) cannot be dynamic from {dim.min} to {dim.max}: the model's code"
            f" {what}."
        )
        seen: set[str] = set()
        for condition, place in lines.get(name, []):
            if place not in seen:
                seen.add(place)
                parts.append(f"  {place}\n    needs {condition}")
    suggested = text.partition("Suggested fixes:")[2].split("\n\n")[0].strip()
    if suggested:
        parts.append("torch.export suggests: " + "; ".join(line.strip() for line in suggested.splitlines()))
    parts.append("Make that code independent of the size, narrow the range, or leave the dim out.")
    return DimSpecialized("\n".join(parts))


def _user_frame() -> FrameType | None:
    frame = sys._getframe(1)
    first: FrameType | None = frame
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_TORCH) and not name.startswith(_HERE) and "sympy" not in name:
            return frame
        frame = frame.f_back  # type: ignore[assignment]
    return first
