"""The stages of a compilation: how long each took, and a line that shows the current one on terminals and notebooks."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from .interrupts import none_lost


class Stages:
    """``with stages("building") as progress:`` times a stage and shows it; ``progress(phase, fraction)`` refines it. An
    interrupt ends the stage; see :func:`.interrupts.none_lost`.

    Nothing is shown where stderr is neither a terminal nor a notebook.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._status: Any = None

    def __enter__(self) -> Stages:
        if _in_notebook():
            self._status = _NotebookStatus(self.seconds)
        elif sys.stderr and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("torchtrt_bridge")
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Callable[[str, float], None]]:
        start = time.perf_counter()

        def progress(phase: str, fraction: float) -> None:
            if self._status is not None:
                self._status.update(f"{name}: {phase} {fraction:.0%}")

        if self._status is not None:
            self._status.update(name)
        try:
            with none_lost():
                yield progress
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Wall time of each finished stage, in seconds."""
        return dict(self._seconds)


class _NotebookStatus:
    """One output of the cell, which changes as the compilation goes on. It has no thread, and leaves the cell's other
    output alone: rich, there, takes standard output over, and torch.export prints to it."""

    _PAUSE_S = 0.1  # between two changes

    def __init__(self, seconds: Callable[[], dict[str, float]]):
        self._seconds = seconds
        self._handle: Any = None
        self._changed = 0.0

    def start(self) -> None:
        from IPython.display import display

        self._handle = display({"text/plain": "torchtrt_bridge"}, raw=True, display_id=True)

    def update(self, text: str) -> None:
        if time.perf_counter() - self._changed > self._PAUSE_S:
            self._changed = time.perf_counter()
            self._show(f"torchtrt_bridge: {text}")

    def stop(self) -> None:
        self._show("torchtrt_bridge: " + ", ".join(f"{name} {value:.1f} s" for name, value in self._seconds().items()))

    def _show(self, text: str) -> None:
        self._handle.update({"text/plain": text}, raw=True)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "ZMQ" in type(shell).__name__
