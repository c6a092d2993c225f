"""The child's side of :mod:`.isolation`: read the job, build, report."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import json
import logging
import mmap
import os
import pathlib
import sys
import threading
from typing import Any

from .builder import build_plan
from .flavor import Unavailable
from .log import listening, logger
from .request import Failure, Initializer, Plan, Request


def main(job: str) -> None:
    """Build what lies in the folder ``job``; the plan is left there, all else goes to standard output as JSON lines."""
    folder = pathlib.Path(job)
    settings = json.loads((folder / "job.json").read_text("utf-8"))
    sys.path[:] = settings["sys_path"]
    reports = Reports()
    _log_to(reports, settings["debug"])
    threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        with listening(echo=lambda line: print(line, file=sys.stderr, flush=True)):
            plan = build_plan(_read_request(settings, folder), progress=reports.progress)
        (folder / "plan").write_bytes(plan.data)
        reports.send(plan=_facts(plan))
    except Failure as failure:
        reports.send(failure=failure.to_dict())
    except Unavailable as error:  # though the caller has one: an environment that changed, a library loaded by hand
        reports.send(failure=Failure(f"In the build process: {error}").to_dict())


class Reports:
    """JSON lines to the caller. Whatever else prints to standard output, as TensorRT's C++
    does, now goes where errors go."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._lock = threading.Lock()
        os.dup2(2, 1)

    def send(self, **report: Any) -> None:
        with self._lock:
            self._file.write(json.dumps(report) + "\n")
            self._file.flush()

    def progress(self, phase: str, fraction: float) -> None:
        self.send(phase=phase, fraction=fraction)


def _log_to(reports: Reports, debug: bool) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reports.send(log=record.levelno, text=record.getMessage())

    logger.addHandler(Handler())
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


def _end_with_caller() -> None:
    sys.stdin.buffer.read()  # returns when the caller closes its end, or is gone
    os._exit(1)


def _read_request(settings: dict[str, Any], folder: pathlib.Path) -> Request:
    plain = {"model": None, **settings["request"]}
    if plain["model"] is None:
        plain["model"] = (folder / "model.onnx").read_bytes()
    plain["profile"] = {name: tuple(map(tuple, shapes)) for name, shapes in plain["profile"].items()}
    if (folder / "edit.json").exists():
        plain["edit"] = _read_edit(json.loads((folder / "edit.json").read_text("utf-8")))
    return Request(**plain, initializers=_map_initializers(settings["initializers"], folder / "initializers"))


def _read_edit(plain: dict[str, Any]) -> Any:
    try:
        return importlib.import_module(plain["module"]).from_plain(plain)
    except Exception as error:  # the author's module, imported here, raises anything
        raise Failure(f"A converter is not there in the build process: {type(error).__name__}: {error}") from error


def _map_initializers(sizes: list[tuple[str, int]], path: pathlib.Path) -> tuple[Initializer, ...]:
    """The weights, mapped rather than read: TensorRT copies them only once."""
    if not sizes:
        return ()
    with open(path, "rb") as file:
        weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    address = ctypes.addressof(ctypes.c_char.from_buffer(weights))
    initializers = []
    for name, nbytes in sizes:
        initializers.append(Initializer(name, address, nbytes, owner=weights))
        address += nbytes
    return tuple(initializers)


def _facts(plan: Plan) -> dict[str, Any]:
    facts = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan) if field.name != "data"}
    return {**facts, "work": [dataclasses.asdict(item) for item in plan.work]}
