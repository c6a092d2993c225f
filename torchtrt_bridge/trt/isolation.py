"""A build in a child process, which TensorRT may take down without taking the caller with it.

The child is a fresh interpreter, never a fork: it loads this folder as a package of its own, and neither torch nor the
rest of ``torchtrt_bridge``. What goes in lies in a private temporary folder; messages come back as JSON lines on its
standard output, the plan as a file. It ends when its standard input does, so that it never outlives the caller.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, Any

from .flavor import VARIABLE, Flavor
from .log import logger
from .processes import end, start
from .request import Crashed, Failure, Plan, Progress, Request
from .work import Work

#: Without the package, whose import takes longer than many a build.
_START = """
import importlib.util, sys
package, job = sys.argv[1:]
spec = importlib.util.spec_from_file_location(
    "torchtrt_bridge_trt", package + "/__init__.py", submodule_search_locations=[package])
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
from torchtrt_bridge_trt.child import main
main(job)
"""

#: With it, for functions of the user's that import it.
_START_WHOLE = """
import json, sys
package, job = sys.argv[1:]
sys.path[:] = json.loads(package)
from torchtrt_bridge.trt.child import main
main(job)
"""


def build_in_child(request: Request, bound: Flavor, progress: Progress, device: int | None) -> Plan:
    """Build ``request`` in a child process, on the GPU ``device`` if there is one.

    Raises:
        Failure: TensorRT's answer, as if it had been built here.
        Crashed: the child ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="torchtrt_bridge-") as name:
        folder = pathlib.Path(name)
        try:
            write_job(request, folder)
        except OSError as error:
            raise Failure(
                f"The build's files could not be written to {name}: {error}. TMPDIR names another place."
            ) from error
        with _running(command(folder), environment(bound, device), folder) as process:
            for event in _events(process):
                if "log" in event:
                    logger.log(event["log"], "%s", event["text"])
                elif "phase" in event:
                    progress(event["phase"], event["fraction"])
                elif "failure" in event:
                    raise Failure.from_dict(event["failure"])
                else:
                    return _read_plan(folder, event["plan"])
            code = process.wait()
            raise crash(code, (folder / "output.txt").read_text("utf-8", "replace"))


def command(folder: pathlib.Path) -> list[str]:
    """The child's command line. ``-I``: nothing that lies about in a folder or in PYTHON* variables gets in its way
    before it takes over the caller's ``sys.path``."""
    here = pathlib.Path(__file__).parent
    if not (folder / "edit.json").exists():
        return [sys.executable, "-I", "-c", _START, str(here), str(folder)]
    path = json.dumps([*_path(), str(here.parents[1])])
    return [sys.executable, "-I", "-c", _START_WHOLE, path, str(folder)]


def _path() -> list[str]:
    return [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]


def write_job(request: Request, folder: pathlib.Path) -> None:
    """Everything that the child needs, in ``folder``."""
    apart = ("model", "initializers", "edit")
    job: dict[str, Any] = {key: value for key, value in vars(request).items() if key not in apart}
    if request.timing_cache is not None:
        job["timing_cache"] = os.path.abspath(request.timing_cache)
    if isinstance(request.model, (str, os.PathLike)):
        job["model"] = os.path.abspath(request.model)
    else:
        (folder / "model.onnx").write_bytes(request.model)
    with open(folder / "initializers", "wb") as file:
        file.writelines((ctypes.c_char * weight.nbytes).from_address(weight.address) for weight in request.initializers)
    settings = {
        "request": {**job, "profile": {name: list(shapes) for name, shapes in request.profile.items()}},
        "initializers": [(weight.name, weight.nbytes) for weight in request.initializers],
        "sys_path": _path(),
        "debug": logger.isEnabledFor(logging.DEBUG),
    }
    (folder / "job.json").write_text(json.dumps(settings), "utf-8")
    if request.edit is not None:
        (folder / "edit.json").write_text(json.dumps(request.edit.to_plain()), "utf-8")


def environment(bound: Flavor, device: int | None) -> dict[str, str]:
    variables = {**os.environ, VARIABLE: bound.name}
    if device is not None:  # the child's only GPU is the caller's current one
        visible = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
        variables["CUDA_VISIBLE_DEVICES"] = visible[device] if visible else str(device)
    return variables


@contextlib.contextmanager
def _running(
    arguments: list[str], environment: dict[str, str], folder: pathlib.Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The child, for as long as this block lasts; it is killed however the block ends."""
    with open(folder / "output.txt", "wb") as output:
        try:
            process = start(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, env=environment)
        except OSError as error:
            raise Failure(f"The build process ({arguments[0]!r}) could not be started: {error}.") from error
    try:
        yield process
    finally:
        end(process)


def _events(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """What the child reports, until it closes its output. Waits in short spells, so that Ctrl-C gets through."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    assert process.stdout is not None
    threading.Thread(target=pump, args=(process.stdout, lines), name="torchtrt_bridge-child", daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=0.1)
        except queue.Empty:
            continue
        if line is None:
            return
        yield json.loads(line)


def pump(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed under our hands: the build was given up
        for line in stream:
            # Not ours: what the interpreter's own start-up printed, and a line that a crash cut short.
            if line.startswith(b"{") and line.endswith(b"\n"):
                lines.put(line)
    lines.put(None)


def _read_plan(folder: pathlib.Path, facts: dict[str, Any]) -> Plan:
    path = folder / "plan"
    data = bytearray(path.stat().st_size)
    with open(path, "rb") as file:
        file.readinto(data)
    work = tuple(Work(**item) for item in facts["work"])
    return Plan(data=memoryview(data), **{**facts, "warnings": tuple(facts["warnings"]), "work": work})


def crash(code: int, output: str) -> Crashed:
    if code == -signal.SIGKILL:
        advice = "The system probably ran out of memory: free some, or build a smaller model."
    elif code < 0:
        advice = "This is a fault inside TensorRT; another version, backend or GPU may do."
    else:
        advice = "Its last lines follow."
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    lines = [line for line in output.splitlines() if line.strip()]
    return Crashed(f"The build process {ended} before the plan was there. {advice}", messages=tuple(lines[-20:]))
