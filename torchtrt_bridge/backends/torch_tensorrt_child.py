"""The process that holds Torch-TensorRT: read a job, answer it, wait for the next (see :mod:`.torch_tensorrt_worker`).

Torch-TensorRT asks torch for a GPU when it is imported and when it lowers a graph, although neither computes anything
there. What it asks is answered here from the job, the same with and without a GPU: graphs and weights stay on the CPU,
and TensorRT's builder alone meets the GPU, where there is one. This process is ours, so nothing has to be undone.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import importlib
import json
import logging
import os
import pathlib
import queue
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import BackendUnavailable, BridgeError, ConversionFailed, UnsupportedLayer
from ..runtime.program import restore
from ..trt.build import own_errors
from ..trt.builder import add_profile, check, configure, make_builder, measured, serialize, timing_cache
from ..trt.child import Reports
from ..trt.diagnosis import failed
from ..trt.flavor import Flavor, flavor
from ..trt.log import listening
from ..trt.progress import make_monitor
from ..trt.request import Request
from ..trt.work import label
from .base import StoredProgram
from .torch_tensorrt_settings import compilation_settings

_IDLE_S = 120.0  # after which a process that nobody asks gives its memory back


def main() -> None:
    """Answer the jobs that standard input names, a folder a line, until it closes or nothing comes for a while."""
    reports = Reports()
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    warnings.simplefilter("ignore")
    while True:
        try:
            folder = pathlib.Path(jobs.get(timeout=_IDLE_S))
        except queue.Empty:
            os._exit(0)
        reports.send(started=True)
        try:
            job = json.loads((folder / "job.json").read_text("utf-8"))
            _log_to(reports, job["debug"])
            with listening(echo=lambda line: print(line, file=sys.stderr, flush=True)):
                with own_errors():
                    answer = _ANSWERS[job["kind"]](job, folder, reports.progress)
            reports.send(answer=answer)
        except BridgeError as error:
            reports.send(error=type(error).__name__, text=str(error))
        except Exception as error:
            traceback.print_exc()
            text = f"The torch_tensorrt route failed: {type(error).__name__}: {error}"
            reports.send(error=ConversionFailed.__name__, text=text)
        gc.collect()


def _plan(job: Mapping[str, Any], folder: pathlib.Path, progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Build the plan into ``folder``, and say what it was built from."""
    began = time.perf_counter()
    bound = flavor()
    request = Request(b"", **{**job["request"], "profile": _shapes(job["request"]["profile"])})
    check(request, bound)
    with listening() as messages:
        make_builder(request, bound, messages)  # decides on TF32, and gives TensorRT our logger
    progress("starting Torch-TensorRT", 0.0)
    network_of = _import(job)
    settings = compilation_settings(job["settings"], tf32=request.tf32, flavour=bound.name)
    calls = importlib.import_module(".torch_tensorrt_calls", __package__)
    quantization = importlib.import_module(".torch_tensorrt_quantization", __package__)
    with calls.defined(job["calls"], bound), quantization.quantized(bound):
        program = _program(job, folder)
        progress("lowering the graph", 0.0)
        graph = network_of.lower(program, settings)
        progress("converting the graph", 0.0)
        made = network_of.Network(bound, graph, settings, job["inputs"], job["outputs"])
        return _built(request, bound, made, folder, began, progress)


def _built(
    request: Request,
    bound: Flavor,
    made: Any,
    folder: pathlib.Path,
    began: float,
    progress: Callable[[str, float], None],
) -> dict[str, Any]:
    """Build the plan of the network ``made``."""
    network = made.network
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    kinds = collections.Counter(layer.type.name.lower() for layer in layers)
    types = collections.Counter(layer.get_output(i).dtype.name for layer in layers for i in range(layer.num_outputs))
    results = {tensor.name: tensor.dtype.name for tensor in map(network.get_output, range(network.num_outputs))}
    label(network)
    with listening() as messages:
        config = made._populate_trt_builder_config()
        configure(request, bound, config)
        add_profile(request, made.builder, network, config, messages)
        config.progress_monitor = make_monitor(bound.trt, progress, lambda: False)
        parsed = time.perf_counter()
        with timing_cache(request, config), open(folder / "plan", "w+b") as file:
            serialized = serialize(bound, made.builder, network, config, file)
            if serialized is None:
                raise failed(request, bound, messages, network)
            if not isinstance(serialized, int):
                file.write(serialized)
        work = measured(bound.trt, network, request.profile, messages)
    return {
        "flavor": bound.name,
        "version": bound.version,
        "torch_tensorrt": importlib.import_module("torch_tensorrt").__version__,
        "target": request.target,
        "layers": dict(kinds.most_common()),
        "types": dict(types.most_common()),
        "results": results,
        "work": [dataclasses.asdict(item) for item in work],
        "warnings": list(messages.warnings),
        "convert_seconds": parsed - began,
        "build_seconds": time.perf_counter() - parsed,
    }


def _refusals(job: Mapping[str, Any], folder: pathlib.Path, progress: Callable[[str, float], None]) -> dict[str, str]:
    """The nodes that no converter takes, and why."""
    progress("starting Torch-TensorRT", 0.0)
    network_of = _import(job)
    settings = compilation_settings(job["settings"], tf32=False, flavour=flavor().name)
    quantization = importlib.import_module(".torch_tensorrt_quantization", __package__)
    with quantization.quantized(flavor()):
        return network_of.refusals(_program(job, folder), settings)


_ANSWERS: Mapping[str, Callable[..., Any]] = {"plan": _plan, "refusals": _refusals}


def _import(job: Mapping[str, Any]) -> Any:
    """:mod:`.torch_tensorrt_network`, and Torch-TensorRT with it.

    Raises:
        BackendUnavailable: it does not import, or uses another TensorRT than this package.
    """
    _answer_for_gpu(job["capability"])
    try:
        module = importlib.import_module(".torch_tensorrt_network", __package__)
        device = importlib.import_module("torch_tensorrt._Device")
        features = importlib.import_module("torch_tensorrt").ENABLED_FEATURES
    except BaseException as error:  # a broken install raises anything, SystemExit among it
        traceback.print_exc()
        raise BackendUnavailable(
            f"torch_tensorrt is installed, but does not import: {type(error).__name__}: {error}"
        ) from None
    device.Device.to = lambda self, kind: torch.device("cpu")
    uses = "tensorrt_rtx" if getattr(features, "tensorrt_rtx", False) else "tensorrt"
    if uses != flavor().name:
        raise BackendUnavailable(f"torch_tensorrt uses {uses} here, and torchtrt_bridge {flavor().name}.")
    return module


def _answer_for_gpu(capability: tuple[int, int]) -> None:
    """torch.cuda's answers about the GPU that the plan is for."""

    class Properties:
        name, total_memory, multi_processor_count = "a GPU", 80 << 30, 132
        major, minor = capability

    cuda: Any = torch.cuda
    cuda.is_available = lambda: False  # with PYTORCH_NVML_BASED_CUDA_CHECK, as Lightning sets it, it goes by the count
    cuda.get_device_capability = lambda device=None: tuple(capability)
    cuda.get_device_properties = lambda device=None: Properties()
    cuda.get_device_name = lambda device=None: Properties.name
    cuda.current_device = lambda: 0
    cuda.device_count = lambda: 1
    cuda.mem_get_info = lambda device=None: (Properties.total_memory, Properties.total_memory)
    cuda.empty_cache = lambda: None
    cuda.synchronize = lambda device=None: None


def _program(job: Mapping[str, Any], folder: pathlib.Path) -> Any:
    """The job's program, on the CPU. Tensors that it comes without (their values do not matter then) have no memory of
    their own."""
    for name in job["modules"]:
        importlib.import_module(name)  # it registers operators that the graph calls
    missing = sorted({name for name in job["operators"] if not _is_registered(name)})
    if missing:
        raise UnsupportedLayer(
            f"torch_tensorrt has no converter for {', '.join(missing)}: the process that converts does not know"
            " operators that a program registers by itself."
        )
    graph = _on_cpu(json.loads((folder / "program.json").read_text("utf-8")))
    parts: dict[str, dict[str, torch.Tensor]] = {"state": {}, "constants": {}}
    stored = {}
    if (folder / "tensors").exists():
        from safetensors.torch import load_file

        stored = load_file(folder / "tensors")
    for part, name, dtype, shape, key in job["tensors"]:
        held = stored.get(key)
        parts[part][name] = held if held is not None else torch.empty((), dtype=getattr(torch, dtype)).expand(shape)
    return restore(StoredProgram(json.dumps(graph).encode(), parts["state"], parts["constants"]))


def _is_registered(name: str) -> bool:
    namespace, _, rest = name.partition("::")
    return hasattr(getattr(torch.ops, namespace), rest.partition(".")[0])


def _on_cpu(data: Any) -> Any:
    """A program's JSON with every device made the CPU."""
    if isinstance(data, list):
        return [_on_cpu(item) for item in data]
    if not isinstance(data, dict):
        return data
    if set(data) == {"type", "index"} and data["type"] == "cuda":
        return {"type": "cpu", "index": None}
    return {key: _on_cpu(value) for key, value in data.items()}


def _shapes(profile: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(map(tuple, shapes)) for name, shapes in profile.items()}


def _read_jobs(jobs: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line.rstrip("\n"))
    os._exit(0)  # the caller closed its end, or is gone


def _log_to(reports: Reports, debug: bool) -> None:
    """Ours and Torch-TensorRT's messages to the caller's logger. An ``INFO`` of Torch-TensorRT's speaks of every node;
    its warnings and errors are of its own inner life, or come as exceptions too."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            own = record.name == "torchtrt_bridge"
            theirs = logging.INFO if record.levelno >= logging.WARNING else logging.DEBUG
            level = record.levelno if own else theirs
            if level > logging.DEBUG or debug:
                text = record.getMessage()
                reports.send(log=level, text=text if own else f"torch_tensorrt: {text}")

    for name in ("torchtrt_bridge", "torch_tensorrt"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [Handler()]
        logger.setLevel(logging.DEBUG if debug and name == "torchtrt_bridge" else logging.INFO)
        logger.propagate = False
