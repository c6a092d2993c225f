"""torch2trt's own tests against torchtrt_bridge.compat.torch2trt, by substituting the imports alone.

    python benchmarks/torch2trt_tests.py PATH [--route auto|onnx|torch_tensorrt|torch2trt] [--json FILE]

PATH is a checkout of https://github.com/NVIDIA-AI-IOT/torch2trt. Its tests import ``torch2trt`` and ``tensorrt``; here
they get torchtrt_bridge.compat.torch2trt, and the TensorRT in use. Every call of a compiled module is compared with the
eager one, whatever the test itself compares: structure, dtype and shape exactly, values within ``LIMITS``.

Without a GPU, ``.cuda()`` does nothing in the tests, and ONNX Runtime or PyTorch computes. ``--plans`` then also builds
TensorRT's plan of each case. The route torch2trt makes plans only: there a case is "built", and nothing is compared.

Cases are spread over processes (``--jobs``); one that ends its process is "crashed", and the rest go on.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

FOLDERS = ("tests/converter_tests", "tests/feature_tests")
LIMITS = {"fp32": 1e-4, "fp16": 1e-2}  # of |a - b| / (1 + |b|)
SECONDS = 120  # that a case may take


def main() -> int:
    options = parse()
    if options.worker:
        return work(options)
    node_ids = collect(options)
    print(f"{len(node_ids)} cases, route {options.route}, {options.jobs} processes", flush=True)
    results = run(node_ids, options)
    report(results)
    if options.json:
        Path(options.json).write_text(json.dumps({"route": options.route, "cases": results}, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--route", default="auto")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--json")
    parser.add_argument("-k", dest="keyword", default="", help="only cases whose name contains this")
    parser.add_argument("--plans", action="store_true", help="without a GPU: build each case's plan too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def collect(options: argparse.Namespace) -> list[str]:
    """The node ids of all cases, in order."""
    child = start(options)
    out, _ = child.communicate("collect\n")
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"no tests were collected from {options.checkout}:\n{out}")
    for problem in lines[0]["problems"]:
        print(f"not collected: {problem}", flush=True)
    return [name for name in lines[0]["node_ids"] if options.keyword in name]


def start(options: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, str(options.checkout), "--worker", "--route", options.route]
    command += ["--plans"] * options.plans
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def run(node_ids: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    waiting: queue.Queue[str] = queue.Queue()
    for node_id in node_ids:
        waiting.put(node_id)
    results: dict[str, dict[str, Any]] = {}

    def serve() -> None:
        child = None
        while True:
            try:
                node_id = waiting.get_nowait()
            except queue.Empty:
                break
            child = child or start(options)
            assert child.stdin is not None and child.stdout is not None
            began = time.perf_counter()
            alarm = threading.Timer(SECONDS, child.kill)
            alarm.start()
            answer = None
            try:
                child.stdin.write(node_id + "\n")
                child.stdin.flush()
                while answer is None and (line := child.stdout.readline()):
                    if line.startswith("{"):
                        answer = json.loads(line)
            except BrokenPipeError:
                pass
            alarm.cancel()
            seconds = time.perf_counter() - began
            if answer is None:
                code = child.wait()
                what = f"took longer than {SECONDS} s" if seconds >= SECONDS else f"ended its process with {code}"
                answer = {"case": node_id, "outcome": "crashed", "reason": what, "compared": 0, "made by": []}
                child = None
            results[node_id] = {**answer, "seconds": round(seconds, 2)}
        if child is not None:
            child.communicate("\n")

    threads = [threading.Thread(target=serve) for _ in range(min(options.jobs, len(node_ids)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[node_id] for node_id in node_ids]


def report(results: list[dict[str, Any]]) -> None:
    for result in results:
        reason = f"  {result['reason']}" if result["reason"] else ""
        print(f"{result['outcome']:8} {result['seconds']:6.1f} s  {result['case']}{reason}")
    for folder in FOLDERS:
        counts = collections.Counter(r["outcome"] for r in results if r["case"].startswith(folder))
        print(f"{folder}: {sum(counts.values())} cases: {', '.join(f'{n} {outcome}' for outcome, n in counts.items())}")
    silent = [r["case"] for r in results if r["outcome"] == "passed" and not r["compared"]]
    print(f"passed without calling a compiled module: {len(silent)}")
    makers = collections.Counter(", ".join(r["made by"]) for r in results if r["compared"])
    print(f"made by: {', '.join(f'{maker} {n}' for maker, n in makers.most_common())}")


# -- a worker: answers a line for each node id that it reads -----------------------------------------------------------


def work(options: argparse.Namespace) -> int:
    import pytest
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what tests and TensorRT print is not an answer
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # what is compared with is fp32
    checkout = options.checkout.resolve()
    if not torch.cuda.is_available():
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore
    compared = substitute(options, checkout)
    arguments = [*FOLDERS, f"--rootdir={checkout}", "-p", "no:cacheprovider", "-c", os.devnull, "-q", "-s"]
    os.chdir(checkout)
    pytest.main(arguments, plugins=[Worker(answers, compared)])
    return 0


class Worker:
    """A pytest plugin that runs the items it is told to."""

    def __init__(self, answers: Any, compared: list[str]):
        self.answers = answers
        self.compared = compared
        self.reports: list[Any] = []
        self.problems: list[str] = []

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.problems.append(f"{report.nodeid}: {str(report.longrepr).splitlines()[-1]}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.reports.append(report)

    def pytest_runtestloop(self, session: Any) -> bool:
        items = {item.nodeid: item for item in session.items}
        for line in iter(sys.stdin.readline, ""):
            name = line.rstrip("\n")
            if name == "collect":
                self.answer({"node_ids": list(items), "problems": self.problems})
            if name not in items:
                return True
            self.reports.clear()
            self.compared.clear()
            items[name].config.hook.pytest_runtest_protocol(item=items[name], nextitem=None)
            made = sorted(set(self.compared))
            self.answer({"case": name, **self.outcome(), "compared": len(self.compared), "made by": made})
        return True

    def outcome(self) -> dict[str, str]:
        for entry in self.reports:
            if entry.outcome != "passed":
                crash = getattr(entry.longrepr, "reprcrash", None)
                reason = crash.message if crash is not None else str(entry.longrepr)
                first = reason.strip().splitlines()[0][:300] if reason.strip() else entry.outcome
                if first.startswith("torchtrt_bridge_tests.Built"):
                    return {"outcome": "built", "reason": ""}
                return {"outcome": entry.outcome, "reason": first}
        return {"outcome": "passed", "reason": ""}

    def answer(self, data: dict[str, Any]) -> None:
        print(json.dumps(data), file=self.answers, flush=True)


def substitute(options: argparse.Namespace, checkout: Path) -> list[str]:
    """Put ours in the place of ``torch2trt`` and ``tensorrt``. Returns a list that grows with every comparison."""
    import importlib
    import pkgutil

    import torch

    from torchtrt_bridge import compiler
    from torchtrt_bridge.backends.torch2trt_tensorrt import stand_in
    from torchtrt_bridge.compat import torch2trt as ours

    sys.path.insert(0, str(checkout))  # where the route finds the package itself
    sys.modules["torch2trt"] = ours
    for module in pkgutil.iter_modules(ours.__path__):
        inner = importlib.import_module(f"{ours.__name__}.{module.name}")
        sys.modules[f"torch2trt.{module.name}"] = inner
    sys.modules["tensorrt"] = stand_in()
    function = sys.modules["torch2trt.torch2trt"]
    if options.route != "auto":
        parse = compiler.Options.parse
        compiler.Options.parse = lambda precision, _, *rest, **more: parse(  # type: ignore[method-assign]
            precision, options.route, *rest, **more
        )
    convert = function.torch2trt  # type: ignore[attr-defined]
    compared: list[str] = []

    def checked(module: Any, *args: Any, **kwargs: Any) -> Any:
        compiled = convert(module, *args, **kwargs)
        before: list[Any] = []

        def remember(_: Any, inputs: Any) -> None:
            before[:] = [torch.utils._pytree.tree_map(clone, inputs)]

        def compare(_: Any, __: Any, result: Any) -> None:
            with torch.no_grad():
                same(module(*before[0]), result, LIMITS["fp16" if kwargs.get("fp16_mode") else "fp32"])
            compared.append(made_by(compiled))

        compiled.register_forward_pre_hook(remember)
        compiled.register_forward_hook(compare)
        return compiled

    ours.torch2trt = function.torch2trt = checked  # type: ignore[attr-defined]
    if not torch.cuda.is_available() and (options.plans or options.route == "torch2trt"):
        compiler.make = also_plans(compiler.make, only=options.route == "torch2trt")
    return compared


def also_plans(make: Any, only: bool) -> Any:
    """``compiler.make`` that builds a plan for a GPU elsewhere, beside what it makes for the CPU or instead."""
    import dataclasses

    import torch

    from torchtrt_bridge.backends.base import Place

    class Built(Exception):
        __module__, __qualname__ = "torchtrt_bridge_tests", "Built"

    def both(captured: Any, place: Any, options: Any, stages: Any, *rest: Any) -> Any:
        unverified = dataclasses.replace(options, verify=False)
        make(captured, Place(torch.device("cpu"), "portable"), unverified, stages, *rest)
        if only:
            raise Built
        return make(captured, place, options, stages, *rest)

    return both


def made_by(compiled: Any) -> str:
    """The route, and what runs its segments where that is not TensorRT alone."""
    runtimes = {segment.runtime for segment in compiled._artifact.segments}
    return compiled.backend + ("" if runtimes == {"tensorrt"} else f" ({'+'.join(sorted(runtimes))})")


def clone(value: Any) -> Any:
    return value.clone() if hasattr(value, "clone") else value


def same(expected: Any, result: Any, limit: float) -> None:
    """Raises AssertionError unless structure, dtypes and shapes are equal, and values nearly."""
    import torch

    wanted, structure = torch.utils._pytree.tree_flatten(expected)
    found, other = torch.utils._pytree.tree_flatten(result)
    assert structure == other, f"structure {other}, not {structure}"
    for a, b in zip(wanted, found):
        if not isinstance(a, torch.Tensor):
            assert type(a) is type(b) and a == b, f"{b!r}, not {a!r}"
            continue
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device), (
            f"{b.dtype}{list(b.shape)} on {b.device}, not {a.dtype}{list(a.shape)} on {a.device}"
        )
        if a.dtype.is_floating_point:
            error = (a.double() - b.double()).abs() / (1 + a.double().abs())
            right = (error <= limit) | (a == b) | (a.isnan() & b.isnan())
            assert bool(right.all()), f"values differ by {error[~right].max().item():.2e}, more than {limit:g}"
        else:
            assert torch.equal(a, b), f"{int((a != b).sum())} of {a.numel()} values differ"


if __name__ == "__main__":
    sys.exit(main())
