"""Ctrl-C, and a notebook's stop button, that Python loses.

Python raises KeyboardInterrupt wherever the main thread is. In a destructor or a weak reference's callback it is
printed ("Exception ignored in ...") and gone; ``torch.export`` calls so many of both that one in twenty was lost there.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def none_lost() -> Iterator[None]:
    """An interrupt that comes within this block and is lost there is raised at its end, instead of any other error.

    Only Python's own handler is stood in for, in the main thread: another one does as it likes.
    """
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
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
    if came:
        raise KeyboardInterrupt
