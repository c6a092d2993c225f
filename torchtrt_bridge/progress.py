"""The stages of a compilation: how long each took, and a line that shows the current one on terminals and notebooks."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


class Stages:
    """``with stages("building") as progress:`` times a stage and shows it; ``progress(phase, fraction)`` refines it.

    Nothing is shown where stderr is neither a terminal nor a notebook.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._status: Any = None

    def __enter__(self) -> Stages:
        if _interactive():
            from rich.console import Console

            self._status = Console(stderr=True).status("torchtrt_bridge")
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
            yield progress
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Wall time of each finished stage, in seconds."""
        return dict(self._seconds)


def _interactive() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "ZMQ" in type(shell).__name__ or bool(sys.stderr and sys.stderr.isatty())
