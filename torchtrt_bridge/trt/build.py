"""Where a build runs, and what its failures are called.

TensorRT for RTX may end the process, so it builds in a child process (:mod:`.isolation`); the full TensorRT builds in
this one. Either way the calling thread only waits: Ctrl-C gets through.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

import torch

from ..errors import (
    BackendUnavailable,
    BridgeError,
    BuildCrashed,
    BuildFailed,
    ConverterFailed,
    InvalidOption,
    PrecisionNotApplied,
)
from .builder import build_plan, check
from .flavor import Flavor, Unavailable, flavor
from .isolation import build_in_child
from .log import logger
from .probe import require_a_builder_that_survives
from .request import Crashed, Failure, HandwrittenFailed, NoGpu, NoKernel, Plan, Progress, Refused, Request

#: Bytes of the disk that a build in a child leaves free.
_SPARE = 256 * 2**20

#: How long an interrupted build may take to end before the caller stops waiting for it.
_PATIENCE_S = 1.5


def build(
    request: Request,
    *,
    progress: Progress = lambda phase, fraction: None,
    isolate: bool | None = None,
    on_gpu: bool | None = None,
) -> Plan:
    """Build the engine that ``request`` describes.

    Args:
        progress: called on this thread with the phase's name and the fraction of the build that is done.
        isolate: build in a child process; None does so where this TensorRT could end the process, and, with a GPU,
            where the disk has room for the weights. What Python functions do that cannot be handed to a child is done
            here; where there is no GPU, a child then shows that the builder survives at all.
        on_gpu: whether a GPU is here; None asks torch.

    Raises:
        BackendUnavailable: no TensorRT is installed, or it needs a GPU and there is none.
        InvalidOption: this TensorRT cannot honour one of the options.
        BuildFailed: TensorRT refused the model. The exception's ``__cause__`` is a :class:`~.request.Failure`, whose
            ``problems`` name the ONNX nodes.
        BuildCrashed: the child process ended without an answer.
    """
    if on_gpu is None:
        on_gpu = torch.cuda.is_available()
    with own_errors():
        request, bound = prepare(request, on_gpu)
        device = torch.cuda.current_device() if on_gpu else None
        contained = isolate
        if isolate is None:
            contained = bound.may_end_the_process and (not on_gpu or _has_room(request))
        if contained and request.fill is None and (request.edit is None or request.edit.stays() is None):
            return build_in_child(request, bound, progress, device)
        if contained and not on_gpu:
            require_a_builder_that_survives(bound)
        return _build_here(request, progress, device)


def prepare(request: Request, on_gpu: bool) -> tuple[Request, Flavor]:
    """The request with its target, where that follows from the GPU here, and the TensorRT that can honour it.

    Raises:
        Unavailable, Refused, NoGpu: see :func:`own_errors`.
    """
    bound = flavor()
    request = _for_this_gpu(request, bound, on_gpu)
    check(request, bound)
    if not on_gpu and not bound.can_build_without_gpu:
        raise NoGpu(
            f"{bound.name} {bound.version} builds only where there is a GPU; tensorrt_rtx builds without one"
            " (pip install tensorrt_rtx)."
        )
    return request, bound


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Within, what TensorRT's side raises becomes an exception that a user can meet."""
    try:
        yield
    except Unavailable as error:
        raise BackendUnavailable(str(error)) from error
    except Failure as error:
        kinds: dict[type[Failure], type[BridgeError]] = {
            Refused: InvalidOption,
            NoGpu: BackendUnavailable,
            NoKernel: PrecisionNotApplied,
            Crashed: BuildCrashed,
            HandwrittenFailed: ConverterFailed,
        }
        raise kinds.get(type(error), BuildFailed)(str(error)) from error


def _has_room(request: Request) -> bool:
    """Whether there is room for what goes to a child and comes from it: the weights, and a plan that holds them."""
    folder = tempfile.gettempdir()
    needed = 2 * sum(weight.nbytes for weight in request.initializers) + _SPARE
    free = shutil.disk_usage(folder).free
    if free < needed:
        logger.info("built in this process: %d bytes are free in %s, and %d may be needed", free, folder, needed)
    return free >= needed


def _for_this_gpu(request: Request, bound: Flavor, on_gpu: bool) -> Request:
    """A portable plan starts at Ampere: an older GPU that is here must be named."""
    if request.target is not None or not on_gpu or not bound.has_compute_capability_targets:
        return request
    major, minor = torch.cuda.get_device_capability()
    here = f"sm{major}{minor}"
    return dataclasses.replace(request, target=here) if major < 8 and here in bound.targets() else request


def _build_here(request: Request, progress: Progress, device: int | None) -> Plan:
    """Build on another thread, while this one listens to it and to Ctrl-C."""
    events: queue.SimpleQueue[tuple[str, float] | Plan | BaseException] = queue.SimpleQueue()
    cancelled = threading.Event()

    def work() -> None:
        try:
            # A thread starts on GPU 0, whichever GPU its parent is on.
            with torch.cuda.device(device) if device is not None else contextlib.nullcontext():
                plan = build_plan(request, progress=lambda *event: events.put(event), cancelled=cancelled.is_set)
            events.put(plan)
        except BaseException as error:  # whatever it is, the waiting thread must hear of it
            events.put(error)

    # Not a daemon: at exit, the interpreter would end it in the middle of TensorRT's C++, and the process with it.
    worker = threading.Thread(target=work, name="torchtrt_bridge-build", daemon=False)
    worker.start()
    try:
        while True:
            try:
                event = events.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(event, Plan):
                return event
            if isinstance(event, BaseException):
                raise event
            progress(*event)
    finally:
        cancelled.set()
        _leave(worker)


def _leave(worker: threading.Thread) -> None:
    began = time.monotonic()
    worker.join(_PATIENCE_S)
    if worker.is_alive():
        waited = time.monotonic() - began
        logger.warning("The build did not end within %.1f s; TensorRT finishes its step in the background.", waited)
