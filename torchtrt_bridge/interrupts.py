"""Ctrl-C, and a notebook's stop button, where Python loses them or they would do lasting harm.

Python raises KeyboardInterrupt wherever the main thread is. In a destructor or a weak reference's callback it is
printed ("Exception ignored in ...") and gone; ``torch.export`` calls so many of both that one in twenty was lost there.
In an import it leaves half a package behind, which nothing but a new process repairs; the first compilation of a
process imports for seconds.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def none_lost() -> Iterator[None]:
    """An interrupt that comes within this block and is lost there is raised at its end, instead of any other error. One
    that comes in an import is raised once that is over.

    Only Python's own handler is stood in for, in the main thread: another one does as it likes.
    """
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    came, outside, again = False, _imports(sys._getframe()), _Again()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        if _imports(frame) > outside:
            again.start()
        else:
            usual(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, usual)
        again.stop()
    if came:
        raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> int:
    """How many frames of Python's import system the stack below ``frame`` has."""
    found = 0
    while frame is not None:
        found += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return found


class _Again:
    """Another interrupt, a moment later, unless it is stopped before."""

    def __init__(self) -> None:
        self._stopped, self._lock = False, threading.Lock()

    def start(self) -> None:
        """For signal handlers: not a ``threading.Thread``, which takes locks that the interrupted code may hold."""
        _thread.start_new_thread(self._send, ())

    def _send(self) -> None:
        time.sleep(0.05)
        with self._lock:
            if not self._stopped:
                os.kill(os.getpid(), signal.SIGINT)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
