"""Runs the sweep: many cases in worker processes, one line of JSON per case, a summary at the end.

    python tests/sweep/run.py --where cuda --workers 14 --out build/sweep
    python tests/sweep/run.py --where cpu --every 10 --out build/sweep-cpu

A case that ends its process is recorded as a crash, one that takes too long as a timeout, and a new worker goes on with
the next case. What is already in the results is not run again; a table is made of them by ``table.py``.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import queue
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.serve:
        return _serve(options.where, options.backend)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / f"{options.where}.jsonl"
    if options.fresh:
        results.unlink(missing_ok=True)
    earlier = _right_earlier(options.previous)
    stays = {case for number, case in enumerate(earlier) if number % options.sample}
    jobs = _jobs(options, stays | {record["case"] for record in read(results)})
    cases = sum(map(len, jobs))
    print(f"on {options.where}: {cases} cases of {len(jobs)} operators, {options.workers} workers", flush=True)
    _run_all(jobs, results, options)
    run = {record["case"] for record in read(results)}
    with open(results, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for case, record in earlier.items() if case not in run)
    records = [r for r in read(results) if not options.only or re.search(options.only, r["case"])]
    summarize(records)
    return 1 if any(r[column]["outcome"] in FAULTS for r in records for column in COLUMNS if column in r) else 0


COLUMNS = ("whole", "hybrid")
FAULTS = ("wrong", "raw error", "crash", "timeout")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", choices=("cuda", "cpu", "build"), help="build: plans, not run")
    parser.add_argument("--backend", default="auto", help="one route alone, by name")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/sweep"))
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds per case, both columns together")
    parser.add_argument("--budget", type=float, default=None, help="seconds after which no new case is begun")
    parser.add_argument("--tenth", action="store_true", help="the cases that the tests try")
    parser.add_argument("--every", type=int, default=1, help="every n-th operator only")
    parser.add_argument("--first", type=int, default=0, help="with --every: which one to begin with")
    parser.add_argument("--samples", type=int, default=None, help="of each operator")
    parser.add_argument("--variant", action="append", help="this variant only (may be given several times)")
    parser.add_argument("--only", default="", help="a pattern of case names: operator/sample/variant")
    parser.add_argument("--previous", type=pathlib.Path, help="results of an earlier run: what was right stays")
    parser.add_argument("--sample", type=int, default=8, help="with --previous: of what was right, run each n-th again")
    parser.add_argument("--fresh", action="store_true", help="forget the results that are there")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.where is None:
        import torch

        options.where = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def _right_earlier(previous: pathlib.Path | None) -> dict[str, dict[str, Any]]:
    """What was right in an earlier run, by case, marked as ``"earlier"``."""
    records = read(previous) if previous is not None else []
    return {r["case"]: {**r, "earlier": True} for r in records if r["whole"]["outcome"] in ("right", "no such case")}


def _jobs(options: argparse.Namespace, done: set[str]) -> list[list[str]]:
    """The names of the cases to run, one list per operator, those with the most cases first."""
    import cases

    by_operator: dict[str, list[str]] = {}
    for case in cases.tenth() if options.tenth else cases.all_ids(options.samples or cases.SAMPLES):
        by_operator.setdefault(case.operator, []).append(str(case))
    chosen = list(by_operator.values())[options.first :: options.every]
    wanted = [
        [
            name
            for name in names
            if name not in done
            and re.search(options.only, name)
            and (not options.variant or name.split("/")[-1] in options.variant)
        ]
        for names in chosen
    ]
    return sorted(filter(None, wanted), key=len, reverse=True)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a file of results; none where there is no file. A line that was cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]


def _run_all(jobs: Sequence[Sequence[str]], results: pathlib.Path, options: argparse.Namespace) -> None:
    waiting: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    lock = threading.Lock()
    began, finished = time.monotonic(), collections.Counter[str]()
    total = sum(map(len, jobs))

    def over() -> bool:
        return options.budget is not None and time.monotonic() - began > options.budget

    def work(file: Any) -> None:
        worker = Worker(options.where, options.backend)
        try:
            while not over():
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    return
                for name in job:
                    if over():
                        return
                    record = worker.run(name, options.limit)
                    with lock:
                        file.write(json.dumps(record) + "\n")
                        file.flush()
                        finished[record["whole"]["outcome"]] += 1
                        count = sum(finished.values())
                        if count % 100 == 0:
                            spent = time.monotonic() - began
                            print(f"{count}/{total} after {spent:.0f} s: {dict(finished)}", flush=True)
        finally:
            worker.stop()

    with open(results, "a", encoding="utf-8") as file:
        threads = [threading.Thread(target=work, args=(file,)) for _ in range(max(1, options.workers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Worker:
    """A process that runs cases; it is replaced when a case ends it or takes too long."""

    def __init__(self, where: str, backend: str):
        self._where, self._backend = where, backend
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, name: str, limit: float) -> dict[str, Any]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        began = time.monotonic()
        try:
            process.stdin.write(name.encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass
        ready = select.select([process.stdout], [], [], limit)[0]
        line = process.stdout.readline() if ready else b""
        if line.endswith(b"\n"):
            record: dict[str, Any] = json.loads(line)
            return record
        outcome, detail = "timeout", f"over {limit:.0f} s"
        if ready:
            outcome, detail = "crash", f"the process ended with {process.wait()}"
        self.stop()
        seconds = round(time.monotonic() - began, 2)
        return {"case": name, "whole": {"outcome": outcome, "detail": detail, "seconds": seconds}}

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--serve", "--where", self._where, "--backend", self._backend]
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # its imports take longer than a case may
        return self._process

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _serve(where: str, backend: str) -> int:
    """A worker: names in, records out, on what was standard output; what libraries print goes elsewhere."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import cases
    import operators
    import torch
    from trial import attempt

    torch.set_num_threads(1)
    operators.operators()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        operator, sample, variant = line.rstrip("\n").split("/")
        case = cases.CaseId(operator, int(sample), variant)
        record: dict[str, Any] = {
            "case": str(case),
            "family": operators.family(operators.operators()[operator]),
            "whole": dataclasses.asdict(attempt(case, where, backend, hybrid=False)),
        }
        if record["whole"]["outcome"] == "refused" and where == "cuda":
            record["hybrid"] = dataclasses.asdict(attempt(case, where, backend, hybrid=True))
        print(json.dumps(record), file=answers, flush=True)
        if any(record.get(column, {}).get("outcome") == "crash" for column in COLUMNS):
            return 1  # nothing works in this process any more
    return 0


def summarize(records: Iterable[dict[str, Any]]) -> None:
    """Counts by outcome, and every case that is neither right nor refused, to the terminal."""
    records = list(records)
    for column in COLUMNS:
        counts = collections.Counter(counted(r, column) for r in records)
        shown = sum(n for outcome, n in counts.items() if outcome not in ("no such case", "not counted"))
        right = counts["right"] / shown if shown else 0.0
        print(f"{column}: {right:.1%} of {shown} cases right; {dict(counts.most_common())}")
    reasons = collections.Counter(
        f"{r['whole']['error']}: {r['whole']['detail'][:110]}" for r in records if r["whole"]["outcome"] == "refused"
    )
    for reason, number in reasons.most_common(25):
        print(f"  {number:4} {reason}")
    faults = [(c, r["case"], r[c]) for r in records for c in COLUMNS if r.get(c, {}).get("outcome") in FAULTS]
    for column, case, trial in faults[:80]:
        print(f"  {column} {trial['outcome']}: {case}: {trial.get('error', '')} {trial['detail'][:220]}")
    print(f"{len(faults)} neither right nor refused")


def counted(record: dict[str, Any], column: str) -> str:
    """A record's outcome in a column. What is whole in TensorRT is the same with hybrids allowed."""
    whole = str(record["whole"]["outcome"])
    return str(record["hybrid"]["outcome"]) if column == "hybrid" and "hybrid" in record else whole


if __name__ == "__main__":
    sys.exit(main())
