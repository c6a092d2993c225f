"""The process that holds Torch-TensorRT, from the caller's side.

``import torch_tensorrt`` changes the process that does it: it makes ``tensorrt`` another name for ``tensorrt_rtx``,
redirects Python's warnings, registers a backend of ``torch.compile``, gives TensorRT a logger that raises inside its
C++, and needs a GPU. None of that can be undone. So it lives in a process of its own, with or without a GPU; a graph
that takes TensorRT down takes that process alone, and Ctrl-C ends it at once. It starts in some seconds, and is kept
for the next graph as long as it is in use. Jobs go in as a folder of files (the program as JSON, its tensors, no
pickles); messages come back as JSON lines on its standard output, the plan as a file.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import errors
from ..errors import BuildCrashed, BuildFailed, ConversionFailed
from ..trt.flavor import Flavor
from ..trt.isolation import crash, environment, pump
from ..trt.log import logger
from ..trt.processes import end, start
from .base import StoredProgram

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from torchtrt_bridge.backends.torch_tensorrt_child import main
main()
"""

_lock = threading.Lock()  # one job at a time
_process: Process | None = None


def ask(
    job: Mapping[str, Any],
    program: StoredProgram,
    bound: Flavor,
    *,
    device: int | None,
    tf32: bool = False,
    tensors: bool = True,
    progress: Callable[[str, float], object] = lambda phase, fraction: None,
    read: Callable[[pathlib.Path, Any], Any] = lambda folder, answer: answer,
) -> Any:
    """The process's answer to ``job`` about ``program``.

    Args:
        device: the GPU that it may use; None where there is none.
        tf32: how it computes fp32, which TensorRT for RTX decides once a process.
        tensors: False sends the names and shapes of the program's tensors without their values.
        read: called with the job's folder and the answer before the folder goes.

    Raises:
        BridgeError: as the process raised it.
        BuildCrashed: it ended without an answer.
    """
    global _process
    with _lock, tempfile.TemporaryDirectory(prefix="torchtrt_bridge-") as name:
        folder = pathlib.Path(name)
        try:
            _write(job, program, tensors, folder)
        except OSError as error:
            raise BuildFailed(f"The files of the build could not be written to {name}: {error}. TMPDIR names"
                              " another place.") from error  # fmt: skip
        key = (os.getpid(), bound.name, device, tf32, tuple(sys.path), os.environ.get("CUDA_VISIBLE_DEVICES"))
        for last in (False, True):
            if _process is None or _process.key != key or not _process.is_alive():
                close()
                progress("starting Torch-TensorRT", 0.0)
                try:
                    _process = Process(key, environment(bound, device))
                except OSError as error:
                    raise BuildFailed(f"The process for Torch-TensorRT could not be started: {error}.") from error
            try:
                answer = _process.ask(folder, progress)
            except _Ended as error:
                close()
                if error.began or last:  # else it ended for want of work, just as this job came
                    raise BuildCrashed(str(crash(error.code, error.output))) from None
            except _Answered as error:
                raise getattr(errors, error.kind, ConversionFailed)(error.text) from None
            except BaseException:  # Ctrl-C, or a fault of ours: nobody waits for it any more
                close()
                raise
            else:
                return read(folder, answer)
    raise AssertionError("unreachable")


def close() -> None:
    """End the process, if it runs. The next job starts another."""
    global _process
    process, _process = _process, None
    if process is not None:
        process.close()


def _forget() -> None:
    """In a fork of the caller: the process is the caller's, and the lock may be held by a thread that is not there."""
    global _lock, _process
    _lock, _process = threading.Lock(), None


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Process:
    """A running child. ``key`` is what it was started for."""

    def __init__(self, key: tuple[Any, ...], environment: dict[str, str]):
        self.key = key
        self._pid = os.getpid()
        self._output = tempfile.TemporaryFile(prefix="torchtrt_bridge-")  # noqa: SIM115
        package = str(pathlib.Path(__file__).parents[2])
        path = [os.path.abspath(entry) for entry in (*sys.path, package) if isinstance(entry, str)]
        self._child = start(
            [sys.executable, "-I", "-c", _START, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env=environment,
        )
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        pumping = (self._child.stdout, self._lines)
        try:
            threading.Thread(target=pump, args=pumping, name="torchtrt_bridge-torch_tensorrt", daemon=True).start()
        except BaseException:  # Ctrl-C: nobody holds this object yet, to close it
            self.close()
            raise

    def is_alive(self) -> bool:
        return self._child.poll() is None

    def ask(self, folder: pathlib.Path, progress: Callable[[str, float], object]) -> Any:
        """The answer to the job in ``folder``. Waits in short spells, so that Ctrl-C gets through.

        Raises:
            _Answered: the answer is an error.
            _Ended: the process is gone.
        """
        began = False
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(f"{folder}\n".encode())
            self._child.stdin.flush()
        while True:
            try:
                line = self._lines.get(timeout=0.1)
            except queue.Empty:
                continue
            if line is None:
                raise _Ended(self._child.wait(), self._said(), began)
            event = json.loads(line)
            if "started" in event:
                began = True
            elif "log" in event:
                logger.log(event["log"], "%s", event["text"])
            elif "phase" in event:
                progress(event["phase"], event["fraction"])
            elif "error" in event:
                raise _Answered(event["error"], event["text"])
            else:
                return event["answer"]

    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # a fork of the caller: the process is not ours to end
        end(self._child)
        self._output.close()

    def _said(self) -> str:
        self._output.seek(0)
        return self._output.read().decode("utf-8", "replace")


class _Ended(Exception):
    """The process ended; ``began`` says whether it had taken up the job."""

    def __init__(self, code: int, output: str, began: bool):
        super().__init__(code)
        self.code, self.output, self.began = code, output, began


class _Answered(Exception):
    """The process raised the package's exception ``kind``."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind, self.text = kind, text


def _write(job: Mapping[str, Any], program: StoredProgram, tensors: bool, folder: pathlib.Path) -> None:
    """Everything that the process needs, in ``folder``."""
    from safetensors.torch import save_file

    listed = []
    kept: dict[Any, tuple[str, torch.Tensor]] = {}
    for part in ("state", "constants"):
        for name, tensor in getattr(program, part).items():
            tensor = tensor.detach()
            same = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else (part, name)
            key, _ = kept.setdefault(same, (str(len(kept)), tensor))
            listed.append((part, name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), key))
    if tensors and kept:
        # safetensors refuses tensors that share memory without being the same
        save_file({key: _apart(tensor) for key, tensor in kept.values()}, folder / "tensors")
    (folder / "program.json").write_bytes(program.graph)
    names = sorted(_operators(json.loads(program.graph)))
    namespaces = {name.partition("::")[0] for name in names}
    settings = {
        **job,
        "tensors": listed,
        "operators": names,
        "modules": sorted(name for name in namespaces if name in sys.modules),
        "debug": logger.isEnabledFor(logging.DEBUG),
    }
    (folder / "job.json").write_text(json.dumps(settings), "utf-8")


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _operators(data: Any) -> set[str]:
    """The operators that a program's JSON calls, as ``namespace::name.overload``; torch's own are left out."""
    found: set[str] = set()
    if isinstance(data, dict):
        target = data.get("target")
        if isinstance(target, str) and target.startswith("torch.ops."):
            namespace, _, rest = target.removeprefix("torch.ops.").partition(".")
            if namespace not in ("aten", "prims", "higher_order"):
                found.add(f"{namespace}::{rest}")
        for value in data.values():
            found |= _operators(value)
    elif isinstance(data, list):
        for value in data:
            found |= _operators(value)
    return found
