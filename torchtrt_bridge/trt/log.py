"""TensorRT's messages: to the Python logger ``torchtrt_bridge``, and to whoever listens.

TensorRT keeps the first logger that a process gives it, so there is one, :attr:`Flavor.logger`, for every builder,
parser and runtime. It prints nothing. An ``INFO`` of TensorRT's is a debug record: it speaks of tactics and layers.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .engine_layers import LOG_START

logger = logging.getLogger("torchtrt_bridge")

_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,
    "VERBOSE": logging.DEBUG,
}


# Warnings that a user can do nothing about: int64 inputs are given as such; the default stream is torch's, and calls on
# it were measured to return as soon as on any other; networks are typed because we ask for it.
_NO_NEWS = ("has Int64 binding.", "Using default stream in enqueueV3()", "strongly typed is enabled by default")


class Messages:
    """What TensorRT said while someone listened: the last ``errors``, each of the ``warnings`` once, and the lists of
    ``engines``' layers that end their builds (see :mod:`.engine_layers`).

    Builds that run at the same time in one process hear each other: TensorRT does not say which of them it means.
    """

    def __init__(self, echo: Callable[[str], object] | None = None) -> None:
        self.errors: collections.deque[str] = collections.deque(maxlen=20)
        self.warnings: dict[str, None] = {}
        self.engines: list[str] = []
        self._echo = echo

    def add(self, severity: str, text: str) -> None:
        if text.startswith(LOG_START):
            self.engines.append(text)
            return
        if _LEVELS[severity] == logging.ERROR:
            self.errors.append(text)
        elif severity == "WARNING":
            self.warnings[text] = None
        if self._echo is not None:
            self._echo(f"{severity}: {text}")


@contextlib.contextmanager
def listening(echo: Callable[[str], object] | None = None) -> Iterator[Messages]:
    """Collect what TensorRT says in this block, on any thread; ``echo`` gets each message as it comes."""
    messages = Messages(echo)
    with _lock:
        _listeners.append(messages)
    try:
        yield messages
    finally:
        with _lock:
            _listeners.remove(messages)


def make_logger(trt: Any) -> Any:
    """An ``ILogger`` of the TensorRT module ``trt``."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            with contextlib.suppress(BaseException):  # one that went on into TensorRT's C++ would end the process
                _record(severity.name, text)

    return Logger()


_lock = threading.Lock()
_listeners: list[Messages] = []


def _record(severity: str, text: str) -> None:
    wanted = text.startswith(LOG_START) or logger.isEnabledFor(logging.DEBUG)
    if severity == "VERBOSE" and not wanted:
        return  # thousands of lines a build
    with _lock:
        listeners = tuple(_listeners)
    for messages in listeners:
        messages.add(severity, text)
    level = logging.DEBUG if any(phrase in text for phrase in _NO_NEWS) else _LEVELS[severity]
    logger.log(level, "TensorRT: %s", text)
