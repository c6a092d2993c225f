"""Threads and processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from dropin_table import Case, close, row
from torch.utils.data import DataLoader, Dataset

from torchtrt_bridge.errors import UsedAfterFork

GROUP = "Threads and processes"

_SPAWNED = """
import sys, torch, torch.multiprocessing as mp, torchtrt_bridge as ttb

def work(queue, fast, x):
    queue.put(fast(x.to(fast.device)).cpu().numpy())

if __name__ == "__main__":
    fast, x = ttb.load(sys.argv[1]), torch.load(sys.argv[2], map_location="cpu")
    context = mp.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(queue, fast, x))
    process.start()
    result = queue.get(timeout=120)
    process.join()
    print("right" if abs(result - fast(x.to(fast.device)).cpu().numpy()).max() < 1e-4 else "wrong")
"""


def in_fork(function: Any) -> Any:
    """What ``function()`` gives in a forked child, or the name of its error; fails where it hangs."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work() -> None:
        try:
            theirs.send(function())
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            theirs.send(type(error).__name__)

    process = context.Process(target=work)
    process.start()
    try:
        assert ours.poll(60), "the child hangs"
        return ours.recv()
    finally:
        process.kill()
        process.join()


@row(GROUP, "calls from many threads", "right", "right")
def threads(case: Case) -> None:
    inputs = [torch.randn(1 + i % 8, 3, 6, 6, device=case.device) for i in range(64)]
    expected = [case.eager(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for result, wanted in zip(pool.map(case.fast, inputs), expected):
            close(result, wanted)


@row(
    GROUP,
    "a call in a forked child (`multiprocessing`, gunicorn)",
    "on the CPU right, or hangs; CUDA's `RuntimeError`",
    "on the CPU right; on a GPU `UsedAfterFork`",
)
def fork(case: Case) -> None:
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            case.fast(case.x)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        found = in_fork(lambda: case.fast(case.x).tolist())
    finally:
        stop.set()
        thread.join()
    if case.device.type == "cuda":
        assert found == UsedAfterFork.__name__
    else:
        close(torch.tensor(found), case.eager())
    case.right()


@row(GROUP, "`.cpu()`, `state_dict()`, `pickle` in a forked child", "works on the CPU", "works, also for a plan")
def fork_without_a_call(case: Case) -> None:
    case.right()
    sizes = in_fork(lambda: {k: t.numel() for k, t in pickle.loads(pickle.dumps(case.fast.cpu().state_dict())).items()})
    state = case.fast.state_dict()
    assert set(sizes) == set(state)
    assert all(sizes[name] == len(state[name]) for name in state if name.startswith("engine"))


class _Scored(Dataset):
    """A data set that calls the model, as people who filter or embed on the fly do."""

    def __init__(self, module: Any, x: torch.Tensor):
        self.module, self.x = module, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.module(self.x[index : index + 1])[0].detach()


@row(
    GROUP,
    "`DataLoader(dataset_that_calls_fast, num_workers=2)`",
    "right on the CPU; CUDA's `RuntimeError`",
    "right on the CPU; on a GPU `UsedAfterFork`",
)
def loader_workers(case: Case) -> None:
    case.right()
    loader = DataLoader(_Scored(case.fast, case.x.cpu()), batch_size=2, num_workers=2, multiprocessing_context="fork")
    if case.device.type == "cuda":
        with pytest.raises(UsedAfterFork):
            list(loader)
        return
    close(torch.cat(list(loader)), case.eager())


@row(GROUP, "a `DataLoader` with workers, `fast` in the main process", "right", "right")
def loader(case: Case) -> None:
    loader = DataLoader(case.x.cpu(), batch_size=2, num_workers=2)
    close(torch.cat([case.fast(x.to(case.device)) for x in loader]), case.eager())


@row(GROUP, "sent to a spawned process (`torch.multiprocessing`)", "right", "right")
def spawn(case: Case) -> None:
    case.fast.save(case.folder / "fast.safetensors")
    torch.save(case.x, case.folder / "x.pth")
    script = Path(case.folder / "main.py")
    script.write_text(_SPAWNED)
    command = [sys.executable, str(script), str(case.folder / "fast.safetensors"), str(case.folder / "x.pth")]
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.stdout.strip() == "right", done.stderr


@row(GROUP, "moved by one thread while others call it", "an error in the others, or right", "the same")
def moves_under_way(case: Case) -> None:
    failures: list[BaseException] = []

    def call() -> None:
        for _ in range(20):
            try:
                case.fast(case.x)
            except Exception as error:  # noqa: BLE001 - it is what the test looks at
                failures.append(error)

    workers = [threading.Thread(target=call) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in range(5):
        case.fast.cpu().to(case.device)
    for worker in workers:
        worker.join()
    assert all(type(error).__name__ == "DeviceMismatch" for error in failures)
    case.right()
