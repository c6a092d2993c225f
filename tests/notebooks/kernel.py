"""A real Jupyter kernel, as a notebook's front end drives it: cells go in, outputs come out, interrupts get through."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager


@dataclasses.dataclass
class Cell:
    """What running one cell gave: ``data`` is its result by MIME type, ``traceback`` its error, ``displays`` what else
    it displayed, as text, with every change."""

    stdout: str = ""
    stderr: str = ""
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    displays: list[str] = dataclasses.field(default_factory=list)
    error: str = ""
    traceback: str = ""
    seconds: float = 0.0


class Kernel:
    """One running kernel. ``run(code)`` runs a cell to its end and returns what came out."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient):
        self._manager, self._client = manager, client

    def run(self, code: str, timeout: float = 300) -> Cell:
        self.start(code)
        return self.finish(timeout)

    def start(self, code: str) -> None:
        """Send a cell and come back while it runs."""
        self._began = time.monotonic()
        self._message = self._client.execute(code, stop_on_error=False)

    def finish(self, timeout: float = 300) -> Cell:
        """The outputs of the cell that was started, once it has ended."""
        cell = Cell()
        while True:
            message = self._client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") != self._message:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                cell.seconds = time.monotonic() - self._began
                return cell
            self._note(cell, kind, content)

    @property
    def pid(self) -> int:
        """The kernel's process."""
        return int(self._manager.provisioner.process.pid)

    def interrupt(self) -> None:
        """What the stop button does."""
        self._manager.interrupt_kernel()

    @staticmethod
    def _note(cell: Cell, kind: str, content: dict[str, Any]) -> None:
        if kind == "stream":
            setattr(cell, content["name"], getattr(cell, content["name"]) + content["text"])
        elif kind == "execute_result":
            cell.data = content["data"]
        elif kind in ("display_data", "update_display_data"):
            cell.displays.append(content["data"].get("text/plain", ""))
        elif kind == "error":
            cell.error = content["ename"]
            cell.traceback = "\n".join(content["traceback"])


@contextlib.contextmanager
def running(folder: str) -> Iterator[Kernel]:
    """A kernel of this interpreter, in ``folder``; no other kernel that is installed is considered."""
    manager = KernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    manager.start_kernel(cwd=folder)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
