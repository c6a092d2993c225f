"""The ten models of docs/models.md by each route, by ``auto`` and by ``fastest``: which took them, times, what won.

    python benchmarks/routes.py [--models MiniLM,GPT-2] [--precisions fp16] [--workers 3] [--seconds 520] [--out DIR]

Each model and precision is a process. ``auto`` and the routes that it did not come to are compiled and verified, then
``fastest`` twice, the second time from the cache. All that came out is saved, and ``check_fastest.py``, which shares no
code with the package's own measuring, times the files against each other. One process at a time measures. DIR gets
``routes.json`` and ``routes.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BATCH = 8


def main() -> None:
    from models import MODELS

    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--precisions", default="fp16")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--out", default=os.environ.get("OUT", "build"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one[0], options.one[1], Path(options.one[2]), options.batch)
    wanted = [(name, precision) for precision in options.precisions.split(",") for name in options.models.split(",")]
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHTRT_BRIDGE_CACHE"] = str(Path(folder, "cache"))  # so that the first choice is made here
        os.environ["TORCHTRT_BRIDGE_CACHE_SIZE"] = "20G"
        run_all(wanted, Path(folder), options, deadline)
        rows = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "routes.json").write_text(json.dumps(rows, indent=1))
    text = table(rows)
    (out / "routes.md").write_text(text)
    print(text)


def run_all(wanted: list[tuple[str, str]], folder: Path, options: argparse.Namespace, deadline: float) -> None:
    waiting, running = list(wanted), []
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    while waiting or running:
        while waiting and len(running) < options.workers:
            command = [sys.executable, __file__, "--batch", str(options.batch), "--one", *waiting.pop(0), str(folder)]
            running.append(subprocess.Popen(command, env=environment))
        time.sleep(0.2)
        running = [process for process in running if process.poll() is None]
        if time.monotonic() > deadline:
            print(f"time is up; {len(waiting) + len(running)} of {len(wanted)} are missing", flush=True)
            for process in running:
                process.kill()
            return


def one(name: str, precision: str, folder: Path, batch: int) -> None:
    """One model in one precision: compiled every way, saved, checked."""
    import models
    import torch

    import torchtrt_bridge as ttb
    from torchtrt_bridge.selection import BACKENDS

    device = "cuda" if torch.cuda.is_available() else "cpu"
    slug = f"{name.replace('/', '-').replace(' ', '-')}.{precision}"
    row: dict[str, Any] = {"model": name, "precision": precision, "routes": {}, "device": device}
    model, inputs = models.make(name, batch, device)
    work = folder / slug
    work.mkdir()
    torch.save(inputs, work / "inputs.pth")

    def compiled(backend: str, model: Any = model) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            fast = ttb.compile(model, inputs, precision, backend=backend)
        except ttb.errors.BridgeError as error:
            return {"error": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - began}
        torch.save(fast.state_dict(), work / f"{backend}.pth")
        report = fast.report.to_dict()
        found = {"seconds": time.perf_counter() - began, "backend": fast.backend, "report": report}
        del fast
        if device == "cuda":
            torch.cuda.empty_cache()
        return found

    row["auto"] = compiled("auto")
    for route in BACKENDS:
        if route.name == row["auto"].get("backend"):
            os.rename(work / "auto.pth", work / f"{route.name}.pth")
            row["routes"][route.name] = row["auto"]
        else:
            row["routes"][route.name] = compiled(route.name)
    with measuring(folder):
        row["fastest"] = compiled("fastest")
        row["again"] = compiled("fastest")
        if "error" not in row["fastest"]:
            command = [sys.executable, str(HERE / "check_fastest.py"), str(work)]
            checked = subprocess.run(command, capture_output=True, text=True)
            row["check"] = json.loads(checked.stdout) if checked.returncode == 0 else {"error": checked.stderr[-2000:]}
    (folder / f"{slug}.json").write_text(json.dumps(row))


@contextlib.contextmanager
def measuring(folder: Path) -> Iterator[None]:
    """One process at a time."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: ms of a call by the routes' own measurement, and what the other clock says."""
    head = "model precision routes,_ms_(plain,_CUDA_graph) auto fastest ms second_compile,_s beyond_capture,_s check"
    lines = ["| " + " | ".join(title.replace("_", " ") for title in head.split()) + " |", "|" + "---|" * 9]
    for row in rows:
        lines.append("| " + " | ".join(cells(row)) + " |")
    for row in rows:
        for name, found in row["routes"].items():
            if "error" in found:
                lines.append(f"\n- {row['model']} {row['precision']}, {name}: {found['error'].splitlines()[0][:300]}")
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    fastest, again, check = row["fastest"], row["again"], row.get("check", {})
    auto = row["auto"].get("backend", "none")
    if "error" in fastest:
        return [row["model"], row["precision"], "", auto, fastest["error"].splitlines()[0][:200], "", "", "", ""]
    times: dict[str, dict[bool, float]] = {}
    for attempt in fastest["report"]["routes"]:
        if attempt["milliseconds"] is not None:
            times.setdefault(attempt["route"], {})[bool(attempt["cuda_graph"])] = attempt["milliseconds"]
    routes = "; ".join(
        f"{name} {', '.join(f'{found[graph]:.3f}' if graph in found else '-' for graph in (False, True))}"
        for name, found in times.items()
    )
    best = next(attempt for attempt in fastest["report"]["routes"] if attempt["outcome"] == "chosen")
    won = best["route"] + (" with a CUDA graph" if best["cuda_graph"] else "")
    seconds, beyond = "", ""
    if "report" in again:
        same = "" if again["backend"] == fastest["backend"] else f" ({again['backend']}!)"
        seconds = f"{again['seconds']:.2f}{same}"
        beyond = f"{again['seconds'] - again['report']['seconds'].get('capturing', 0.0):.2f}"
    ratio = f"{check['ratio']:.3f} of the best, {check['best']}" if "ratio" in check else check.get("error", "")[-120:]
    return [row["model"], row["precision"], routes, auto, won, f"{best['milliseconds']:.3f}", seconds, beyond, ratio]


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
