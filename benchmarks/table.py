"""The table of docs/models.md: ten models, three precisions, static and with a dynamic batch, on a GPU.

    python benchmarks/table.py [--workers 5] [--only NAME ...] [--out table.json]

Each of the 60 is compiled and verified, its state dict saved with inputs and results (a static batch of 8; batches 8
and 3 of a dynamic 1 to 16), then loaded in a process that never saw the model and compared to the last bit. A process
for each model and precision, several at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import torchtrt_bridge as ttb

PRECISIONS = ("fp32", "fp16", "bf16")
BATCH = 8


def main() -> None:
    from models import MODELS

    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS)
    parser.add_argument("--out", default="table.json")
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument("--compile", nargs=2)
    parser.add_argument("--load")
    options = parser.parse_args()
    if options.compile:
        return compile_one(*options.compile, options.precisions)
    if options.load:
        return load_all(Path(options.load), options.only, options.precisions)
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        pairs = list(itertools.product(options.only, options.precisions))
        run_workers([["--compile", name, folder, "--precisions", p] for name, p in pairs], options.workers, deadline)
        loading = [["--load", folder, "--only", name, "--precisions", p] for name, p in pairs]
        run_workers(loading, options.workers, deadline)
        rows = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    Path(options.out).write_text(json.dumps(rows, indent=1))
    show(rows)


def run_workers(tasks: list[list[str]], workers: int, deadline: float) -> None:
    """A process for each, so that a crash of one costs no other."""
    waiting, running = list(tasks), []
    while waiting or running:
        while waiting and len(running) < workers:
            command = [sys.executable, __file__, *waiting.pop(0)]
            running.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "2"}))
        time.sleep(0.2)
        running = [process for process in running if process.poll() is None]
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
            return


def compile_one(name: str, folder: str, precisions: list[str]) -> None:
    import models

    slug = name.replace("/", "-").replace(" ", "-")
    for precision, dynamic in itertools.product(precisions, (False, True)):
        model, inputs = models.make(name, BATCH, "cuda")
        row: dict[str, Any] = {"model": name, "precision": precision, "dynamic": dynamic, "ok": False}
        stem = Path(folder, f"{slug}.{precision}.{'dynamic' if dynamic else 'static'}")
        began = time.perf_counter()
        build = ttb.BuildOptions(kernel_specialization="none") if dynamic else None
        try:
            fast = ttb.compile(model, inputs, precision, dynamic_batch=(1, BATCH, 16) if dynamic else None, build=build)
            results = [fast(**inputs) if isinstance(inputs, dict) else fast(*inputs)]
            if dynamic:
                _, other = models.make(name, 3, "cuda")
                results.append(fast(**other) if isinstance(other, dict) else fast(*other))
                inputs = [inputs, other]
            else:
                inputs = [inputs]
            row.update(seconds=time.perf_counter() - began, report=fast.report.to_dict())
            row.update(opset=fast.provenance["opset"])
            torch.save(fast.state_dict(), f"{stem}.pth")
            torch.save([inputs, [flat(result) for result in results]], f"{stem}.inputs")
            row.update(bytes=os.path.getsize(f"{stem}.pth"))
            row["compiled"] = True
        except Exception as error:
            row.update(error=f"{type(error).__name__}: {error}", seconds=time.perf_counter() - began)
        Path(f"{stem}.json").write_text(json.dumps(row))
        del model
        torch.cuda.empty_cache()


def load_all(folder: Path, names: list[str], precisions: list[str]) -> None:
    """In a process that has none of the models' classes imported: load and compare to the last bit."""
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        if not row.get("compiled") or row["model"] not in names or row["precision"] not in precisions:
            continue
        try:
            fast = ttb.TRTModule()
            fast.load_state_dict(torch.load(path.with_suffix(".pth")))
            all_inputs, expected = torch.load(path.with_suffix(".inputs"))
            results = [flat(call(fast, inputs)) for inputs in all_inputs]
            pairs = [(a, b) for r, e in zip(results, expected) for a, b in zip(r, e)]
            row["same_bits"] = all(torch.equal(a, b) for a, b in pairs)
            row["reload_error"] = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
            row["ok"] = row["same_bits"] or row["reload_error"] < 1e-3
        except Exception as error:
            row["error"] = f"reload: {type(error).__name__}: {error}"
        path.write_text(json.dumps(row))


def call(module: Any, inputs: Any) -> Any:
    return module(**inputs) if isinstance(inputs, dict) else module(*inputs)


def flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [v for v in (result.values() if isinstance(result, dict) else result) if isinstance(v, torch.Tensor)]


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{sum(row['ok'] for row in rows)} of {len(rows)} compiled, verified and reloaded", flush=True)
    for row in rows:
        label = f"{row['model']:<14}{row['precision']}  {'dynamic' if row['dynamic'] else 'static '}"
        if row["ok"]:
            worst = max(r["relative_l2"] for r in row["report"]["verification"])
            same = 'same bits' if row['same_bits'] else f"reload {row['reload_error']:.0e}"
            print(
                f"{label}  error {worst:.1e}  {same}"
                f" compile {row['seconds']:.0f} s  {row['bytes'] / 2**20:.0f} MiB"
                f"  opset {row['opset']}"
            )
        else:
            print(f"{label}  {row.get('error', 'not the same after reloading')[:600]}")


if __name__ == "__main__":
    main()
