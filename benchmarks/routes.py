"""The ten models of docs/models.md by each route and by ``fastest``: which routes took them, times, what won.

    python benchmarks/routes.py [--models MiniLM,GPT-2] [--precisions fp16] [--workers 4] [--seconds 520] [--out DIR]

Each model and precision is a process. ``fastest`` builds and verifies it by every route, and measures; a second
compilation takes the choice from the cache. What each route made is saved on the way, and ``check_fastest.py``, which
shares no code with the package's own measuring, times the files against each other. One process at a time measures.
With ``--auto``, ``backend="auto"`` is compiled too. DIR gets ``routes.json`` and ``routes.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BATCH = 8


def main() -> None:
    from models import MODELS

    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--precisions", default="fp16")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--auto", action="store_true")
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--out", default=os.environ.get("OUT", "build"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one[0], options.one[1], Path(options.one[2]), options)
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
            command += ["--auto"] if options.auto else []
            running.append(subprocess.Popen(command, env=environment))
        time.sleep(0.2)
        running = [process for process in running if process.poll() is None]
        if time.monotonic() > deadline:
            print(f"time is up; {len(waiting) + len(running)} of {len(wanted)} are missing", flush=True)
            for process in running:
                process.kill()
            return


def one(name: str, precision: str, folder: Path, options: argparse.Namespace) -> None:
    """One model in one precision: compiled every way, saved, checked."""
    import models
    import torch
    from turns import turn

    import torchtrt_bridge as ttb
    from torchtrt_bridge import fastest, measuring

    device = "cuda" if torch.cuda.is_available() else "cpu"
    slug = f"{name.replace('/', '-').replace(' ', '-')}.{precision}"
    row: dict[str, Any] = {"model": name, "precision": precision, "device": device}
    model, inputs = models.make(name, options.batch, device)
    work = folder / slug
    work.mkdir()
    torch.save(inputs, work / "inputs.pth")

    def compiled(backend: str) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            fast = ttb.compile(model, inputs, precision, backend=backend)
        except ttb.errors.BridgeError as error:
            return {"error": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - began}
        seconds = time.perf_counter() - began
        torch.save(fast.state_dict(), work / f"{backend}.pth")
        found = {"seconds": seconds, "backend": fast.backend, "report": fast.report.to_dict()}
        return found

    make, measure = fastest.Attempts.make, measuring.measure

    def make_and_save(self: Any, route: Any, *args: Any) -> Any:
        module = make(self, route, *args)
        if module is not None:
            torch.save(module.state_dict(), work / f"{route.name}.pth")
        return module

    def alone(*args: Any, **kwargs: Any) -> Any:
        with turn(folder / "lock"):
            return measure(*args, **kwargs)

    fastest.Attempts.make, fastest.measure = make_and_save, alone  # type: ignore[method-assign]
    row["fastest"] = compiled("fastest")
    with turn(folder / "lock"):
        row["again"] = compiled("fastest")
    if options.auto:
        row["auto"] = compiled("auto")
        (work / "auto.pth").unlink(missing_ok=True)
    if "error" not in row["fastest"]:
        with turn(folder / "lock"):
            command = [sys.executable, str(HERE / "check_fastest.py"), str(work)]
            checked = subprocess.run(command, capture_output=True, text=True)
        row["check"] = json.loads(checked.stdout) if checked.returncode == 0 else {"error": checked.stderr[-2000:]}
    (folder / f"{slug}.json").write_text(json.dumps(row))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: ms of a call by the package's own measurement, and what the other clock says."""
    head = "model precision routes,_ms_(plain,_CUDA_graph) fastest ms second_compile,_s beyond_capture,_s check"
    lines = ["| " + " | ".join(title.replace("_", " ") for title in head.split()) + " |", "|" + "---|" * 8]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    for row in rows:
        for attempt in row["fastest"].get("report", {}).get("routes", ()):
            if attempt["outcome"] in ("failed", "wrong", "impossible"):
                reason = attempt["reason"].splitlines()[0][:300]
                what = f"{row['model']} {row['precision']}, {attempt['route']}: {attempt['outcome']}"
                lines.append(f"\n- {what}: {reason}")
        if "auto" in row:
            lines.append(f"\n- {row['model']} {row['precision']}: auto took {row['auto'].get('backend', 'none')}")
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    fastest, again, check = row["fastest"], row["again"], row.get("check", {})
    if "error" in fastest:
        return [row["model"], row["precision"], "", fastest["error"].splitlines()[0][:200], "", "", "", ""]
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
    return [row["model"], row["precision"], routes, won, f"{best['milliseconds']:.3f}", seconds, beyond, ratio]


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
