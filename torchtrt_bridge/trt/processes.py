"""Child processes that are never left behind: an interrupt that comes while one is being started ends it, too."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from concurrent.futures import Future
from typing import Any


def start(arguments: list[str], **settings: Any) -> subprocess.Popen[bytes]:
    """``subprocess.Popen`` with the child in a session of its own: a terminal's Ctrl-C reaches the caller alone, which
    then ends the child's whole group with :func:`end`.

    Python raises KeyboardInterrupt in the main thread, between any two of its instructions. Within ``Popen`` that would
    lose the process: it runs, and nobody holds it. So a thread starts it, which no interrupt can reach.

    Raises:
        OSError: it could not be started.
    """
    started: Future[subprocess.Popen[bytes]] = Future()

    def launch() -> None:
        if started.set_running_or_notify_cancel():
            try:
                started.set_result(subprocess.Popen(arguments, start_new_session=True, **settings))
            except BaseException as error:
                started.set_exception(error)

    try:
        threading.Thread(target=launch, name="torchtrt_bridge-start", daemon=True).start()
        return started.result()
    except BaseException:
        if not started.cancel() and started.exception() is None:
            end(started.result())
        raise


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and every process of its own, wait for it, and close its streams."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    for stream in process.stdin, process.stdout:
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
