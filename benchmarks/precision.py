"""Every precision on every route for the ten models: error, time, engine size, share of work in the asked precision.

    python benchmarks/precision.py --out build/precision.json --seconds 540        # a GPU; goes on where it stopped
    python benchmarks/precision.py --table build/*.json                            # Markdown of what was measured
    python benchmarks/precision.py --cpu                                           # MiniLM in int8 against eager

A row is measured in one process and written at once, so that a run that is stopped, or over its budget, goes on with
the next row when it is started again. A refusal is a row too, with its message. Times are of a call through a CUDA
graph, eager's too where torch can capture it; errors are against eager in fp32 without TF32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import MODELS, make
from rich.console import Console
from rich.table import Table
from turns import turn

import torchtrt_bridge as ttb

PRECISIONS = ("fp16", "bf16", "int8", "fp8")
ROUTES = ("onnx", "torch_tensorrt", "torch2trt")
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/precision.json"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no row after this time")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--turn", type=Path, help="a file to lock while measuring, for several processes at once")
    parser.add_argument("--routes", nargs="*", default=list(ROUTES), choices=ROUTES, metavar="ROUTE")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="no more than a table of these files")
    parser.add_argument("--cpu", action="store_true", help="MiniLM in int8 on the CPU against eager, and no more")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.cpu:
        on_cpu()
        return
    if arguments.table:
        print(markdown({key: row for file in arguments.table for key, row in json.loads(file.read_text()).items()}))
        return
    if not torch.cuda.is_available():
        raise SystemExit("The rows are measured on an NVIDIA GPU; --cpu is what runs without one.")
    began = time.monotonic()
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.models:
        wanted = [f"{name} | {p} | {r}" for p in PRECISIONS for r in arguments.routes]
        left = [key for key in wanted if key not in rows]
        if not left:
            continue
        model, inputs = make(name, BATCH, "cuda")
        with turn(arguments.turn):
            eager = milliseconds(graphed(lambda: call(model, inputs)))  # noqa: B023
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            expected = call(model, inputs)
        data = None
        for key in left:
            if time.monotonic() - began > arguments.seconds:
                print(f"out of time; {arguments.out} goes on from here")
                return
            precision, route = key.split(" | ")[1:]
            if precision in ("int8", "fp8") and data is None:
                data = ttb.calibrate(model, inputs, [inputs])
            rows[key] = measured(model, inputs, precision, route, data, expected, arguments.turn)
            rows[key]["eager_ms"] = eager
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            partial = arguments.out.with_suffix(".partial")
            partial.write_text(json.dumps(rows, indent=1))
            os.replace(partial, arguments.out)
            print(key, rows[key], flush=True)
    show(rows)


def measured(
    model: Any, inputs: Any, precision: str, route: str, data: Any, expected: Any, lock: Path | None
) -> dict[str, Any]:
    """One row; int8 leaves convolutions in fp16, and says so, where TensorRT refuses them."""
    asked: Any = precision
    refused = ""
    for _ in range(2):
        began = time.perf_counter()
        try:
            module = ttb.compile(
                model, inputs, asked, backend=route, hybrid=False, calibration=data if precision[-1] == "8" else None,
                verify=False, build=ttb.BuildOptions(minimum_share=0.0), cuda_graph=True,
            )  # fmt: skip
            break
        except ttb.errors.BridgeError as error:
            refused = refused or f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            convolutions = any(isinstance(layer, torch.nn.Conv2d) for layer in model.modules())
            if precision != "int8" or isinstance(asked, dict) or not convolutions:
                return {"refused": refused}
            asked = {"default": "int8", torch.nn.Conv2d: "fp16"}
    seconds = time.perf_counter() - began
    try:
        error = difference(expected, call(module, inputs))
    except RuntimeError as failed:  # kernels are compiled at the first call
        return {"refused": f"{type(failed).__name__}: {str(failed).splitlines()[0][:300]}"}
    work = module.report.work or {}
    with turn(lock):
        taken = milliseconds(lambda: call(module, inputs))
    return {
        "error": error,
        "ms": taken,
        "engine_mb": sum(t.numel() for n, t in module.state_dict().items() if "engine" in n) / 1e6,
        "share": (work.get("by") or {}).get(precision),
        "missed": work.get("missed"),
        "build_s": seconds,
        **({"note": f"convolutions in fp16: {refused}"} if refused else {}),
    }


def call(model: Any, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def tensors(result: Any) -> list[torch.Tensor]:
    values = result.values() if isinstance(result, dict) else result if isinstance(result, (list, tuple)) else [result]
    return [value.float() for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]


def difference(expected: Any, actual: Any) -> float:
    """The largest relative L2 error of a result; NaN where a number is not finite and eager's is."""
    errors = [((a - b).norm() / a.norm()).item() for a, b in zip(tensors(expected), tensors(actual))]
    return max(errors, key=lambda value: float("inf") if value != value else value)


@torch.no_grad()
def milliseconds(run: Callable[[], Any], repeats: int = 30) -> float:
    """The median of a call, after three that are not counted: between two CUDA events on a GPU, else wall time."""
    times = []
    for index in range(repeats + 3):
        if torch.cuda.is_available():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            taken = begin.elapsed_time(end)
        else:
            start = time.perf_counter()
            run()
            taken = (time.perf_counter() - start) * 1e3
        if index >= 3:
            times.append(taken)
    return statistics.median(times)


@torch.no_grad()
def graphed(run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` as a CUDA graph; itself where torch cannot capture it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        print(f"eager without a CUDA graph: {error}")
        return run
    return graph.replay


def on_cpu() -> None:
    """MiniLM in int8 by ONNX Runtime against eager, in turns: the machine's other work then falls on both."""
    model, inputs = make("MiniLM", BATCH)
    calibration = ttb.calibrate(model, inputs, [inputs])
    fast = ttb.compile(model, inputs, "int8", calibration=calibration, backend="onnx", verify=False)
    assert fast.report.runtime == "onnxruntime"
    pairs = [
        (milliseconds(lambda: call(model, inputs), 7), milliseconds(lambda: call(fast, inputs), 7)) for _ in range(5)
    ]
    eager, int8 = (min(pair[i] for pair in pairs) for i in (0, 1))
    with torch.no_grad():
        error = difference(call(model, inputs), call(fast, inputs))
    print(f"MiniLM, {BATCH} x 64 tokens, {torch.get_num_threads()} threads: eager {eager:.1f} ms, int8 {int8:.1f} ms,")
    print(f"{eager / int8:.2f} times as fast; relative L2 error {error:.3f}")


def show(rows: dict[str, dict[str, Any]]) -> None:
    table = Table(*COLUMNS)
    for key, row in rows.items():
        table.add_row(*cells(key, row))
    Console(width=180).print(table)


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The same table as Markdown; refusals that say the same are told once, by number, below it."""
    notes: dict[str, int] = {}
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for key, row in rows.items():
        *numbers, note = cells(key, row)
        number = f"[{notes.setdefault(note, len(notes) + 1)}]" if note else ""
        lines.append(f"| {' | '.join([*numbers, number])} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for note, number in notes.items())])


COLUMNS = ("model", "precision", "route", "error", "ms", "eager ms", "plan, MB", "share", "note")


def cells(key: str, row: dict[str, Any]) -> list[str]:
    name, precision, route = key.split(" | ")
    if "refused" in row:
        return [name, precision, route, "refused", "", f"{row['eager_ms']:.3f}", "", "", row["refused"]]
    share = "" if row["share"] is None else f"{row['share']:.1%}"
    numbers = [f"{row['error']:.1e}", f"{row['ms']:.3f}", f"{row['eager_ms']:.3f}", f"{row['engine_mb']:.1f}", share]
    return [name, precision, route, *numbers, row.get("note", "")]


if __name__ == "__main__":
    main()
