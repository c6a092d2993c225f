"""The few calls of the CUDA runtime that capture and replay a graph, through ctypes.

torch.cuda.CUDAGraph would do, but it ties the process's random generator and memory pools to the capture: another
thread that draws random numbers meanwhile gets an error. Here a capture concerns its own thread and stream alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Sequence

import torch

_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: what other threads do meanwhile is their own affair
_NON_BLOCKING = 1  # cudaStreamNonBlocking: else the legacy default stream of another thread would break the capture
_DEVICE_TO_DEVICE = 3

_CALLS = (
    "cudaStreamCreateWithFlags cudaStreamDestroy cudaStreamBeginCapture cudaStreamEndCapture cudaGraphCreate"
    " cudaGraphAddChildGraphNode cudaGraphAddMemcpyNode1D cudaGraphInstantiateWithFlags cudaGraphLaunch"
    " cudaGraphDestroy cudaGraphExecDestroy"
).split()


class GraphFailed(Exception):
    """There is no graph of what was to be captured; the message says why not."""


class Runtime:
    """torch's own copy of the CUDA runtime.

    Attributes:
        launch: ``launch(executable, stream)`` enqueues a graph and returns CUDA's error code (0: none).

    Raises:
        GraphFailed: it cannot be found, or lacks a call.
    """

    def __init__(self) -> None:
        major = str(torch.version.cuda).partition(".")[0]
        try:
            self._library = ctypes.CDLL(f"libcudart.so.{major}")  # by its name: the one that torch has loaded
            calls = {name: getattr(self._library, name) for name in _CALLS}
        except (OSError, AttributeError) as error:
            raise GraphFailed(f"CUDA graphs need the CUDA runtime as a shared library ({error})") from None
        handle, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        calls["cudaStreamBeginCapture"].argtypes = [handle, number]
        calls["cudaGraphAddChildGraphNode"].argtypes = [handle, handle, handle, size, handle]
        calls["cudaGraphAddMemcpyNode1D"].argtypes = [handle, handle, handle, size, handle, handle, size, number]
        calls["cudaGraphInstantiateWithFlags"].argtypes = [handle, handle, ctypes.c_ulonglong]
        for name in ("cudaStreamDestroy", "cudaGraphDestroy", "cudaGraphExecDestroy"):
            calls[name].argtypes = [handle]
        self.launch = calls["cudaGraphLaunch"]
        self.launch.argtypes = [handle, handle]
        self._calls = calls
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def message(self, code: int) -> str:
        """CUDA's words for an error code; the error is taken off the thread, so that torch does not meet it later."""
        self._library.cudaGetLastError()
        text = self._library.cudaGetErrorString(ctypes.c_int(code)) or b""
        return f"{text.decode(errors='replace')} (CUDA error {code})"

    @contextlib.contextmanager
    def stream(self) -> Iterator[int]:
        """A stream of one's own to capture on. Those of torch's pool are shared: another thread may use the same."""
        made = ctypes.c_void_p()
        self._do("cudaStreamCreateWithFlags", ctypes.byref(made), ctypes.c_uint(_NON_BLOCKING))
        assert made.value is not None
        try:
            yield made.value
        finally:
            self._calls["cudaStreamDestroy"](made)

    def begin(self, stream: int) -> None:
        """Capture what this thread enqueues on ``stream``, which does not run then."""
        self._do("cudaStreamBeginCapture", ctypes.c_void_p(stream), _THREAD_LOCAL)

    def end(self, stream: int) -> int:
        """The graph of what was enqueued on ``stream`` since :meth:`begin`."""
        graph = ctypes.c_void_p()
        self._do("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        if graph.value is None:
            raise GraphFailed("nothing was captured")
        return graph.value

    def executable(
        self, graph: int, before: Sequence[tuple[int, int, int]], after: Sequence[tuple[int, int, int]]
    ) -> int:
        """``graph`` between copies ``(to, from, bytes)`` on the device, ready to launch. It outlives ``graph``."""
        whole = ctypes.c_void_p()
        self._do("cudaGraphCreate", ctypes.byref(whole), ctypes.c_uint(0))
        try:
            first = [self._copy(whole, (), *copy) for copy in before]
            inner = ctypes.c_void_p()
            self._do("cudaGraphAddChildGraphNode", ctypes.byref(inner), whole, *_nodes(first), graph)
            for copy in after:
                self._copy(whole, [inner.value], *copy)
            made = ctypes.c_void_p()
            self._do("cudaGraphInstantiateWithFlags", ctypes.byref(made), whole, 0)
        finally:
            self.destroy(whole.value)
        assert made.value is not None
        return made.value

    def destroy(self, graph: int | None) -> None:
        """Forget a captured graph."""
        self._calls["cudaGraphDestroy"](graph)

    def destroy_executable(self, executable: int) -> None:
        """Forget an executable graph; one that still runs ends first."""
        self._calls["cudaGraphExecDestroy"](executable)

    def _copy(self, graph: ctypes.c_void_p, after: Sequence[int | None], to: int, source: int, size: int) -> int | None:
        node = ctypes.c_void_p()
        self._do(
            "cudaGraphAddMemcpyNode1D", ctypes.byref(node), graph, *_nodes(after), to, source, size, _DEVICE_TO_DEVICE
        )
        return node.value

    def _do(self, name: str, *arguments: object) -> None:
        code = self._calls[name](*arguments)
        if code:
            raise GraphFailed(f"{name}: {self.message(code)}")


@functools.cache
def runtime() -> Runtime:
    """The one of this process.

    Raises:
        GraphFailed: see :class:`Runtime`.
    """
    return Runtime()


def _nodes(nodes: Sequence[int | None]) -> tuple[ctypes.Array[ctypes.c_void_p], int]:
    return (ctypes.c_void_p * max(len(nodes), 1))(*nodes), len(nodes)
