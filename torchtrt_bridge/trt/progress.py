"""What TensorRT calls while it builds: how far it has come, whether to go on, and where the plan goes."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from typing import IO, Any

from .request import Progress


def make_monitor(trt: Any, progress: Progress, cancelled: Callable[[], bool]) -> Any:
    """An ``IProgressMonitor`` of the TensorRT module ``trt``.

    It calls ``progress(phase, fraction)``, on TensorRT's threads, and ends the build at the next step after
    ``cancelled()`` is true, or after one of the two raised.
    """
    phases = Phases()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._tell(phase, phases.start(phase, parent, steps))

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, phases.step(phase, step))
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            self._tell(phase, phases.finish(phase))

        def _tell(self, phase: str, fraction: float | None) -> None:
            go_on = False
            with contextlib.suppress(BaseException):  # one that went on into TensorRT's C++ would end the process
                if fraction is not None:
                    progress(phase, fraction)
                go_on = not cancelled()
            self.stopped = self.stopped or not go_on

    return Monitor()


def make_writer(trt: Any, file: IO[bytes]) -> Any:
    """An ``IStreamWriter`` of the TensorRT module ``trt`` into ``file``; ``size`` counts its bytes, ``error`` is the
    first fault."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.size = 0
            self.error: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                file.write(data)
            except OSError as error:  # an exception that went on into TensorRT's C++ would end the process
                self.error = self.error or error
                return 0
            self.size += len(data)
            return len(data)

    return Writer()


class Phases:
    """TensorRT's nested phases as one fraction that never falls.

    A phase takes up the step that its parent is in. Each method returns the fraction where it is worth telling (a new
    phase, or a hundredth more), else None.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Span] = {}
        self._told = 0.0
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> float | None:
        with self._lock:
            outer = self._open.get(parent) if parent is not None else None
            begin, width = (outer.at, outer.step_width) if outer is not None else (0.0, 1.0)
            self._open[phase] = _Span(begin, width, max(steps, 1))
            return self._tell(begin, always=True)

    def step(self, phase: str, step: int) -> float | None:
        with self._lock:
            span = self._open.get(phase)
            if span is None:
                return None
            span.done = min(step + 1, span.steps)
            return self._tell(span.at)

    def finish(self, phase: str) -> float | None:
        with self._lock:
            span = self._open.pop(phase, None)
            return self._tell(span.begin + span.width) if span is not None else None

    def _tell(self, fraction: float, always: bool = False) -> float | None:
        if not always and fraction < self._told + 0.01:
            return None
        self._told = max(self._told, min(fraction, 1.0))
        return self._told


@dataclasses.dataclass
class _Span:
    """The part of the whole that one phase takes up."""

    begin: float
    width: float
    steps: int
    done: int = 0

    @property
    def step_width(self) -> float:
        return self.width / self.steps

    @property
    def at(self) -> float:
        return self.begin + self.done * self.step_width
