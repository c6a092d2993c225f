"""Is the module that ``fastest`` chose within 3 % of the best of its candidates? By a clock of this script's own.

    python benchmarks/check_fastest.py FOLDER

FOLDER holds ``inputs.pth``, ``fastest.pth`` and the state dicts of the candidates, by route. Each candidate is loaded
plain and with CUDA graphs. Calls come in random order, one at a time, between two CUDA events of their own; medians are
compared. Prints JSON.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path

import torch

import torchtrt_bridge as ttb

CALLS = 12000
SECONDS = 4.0


def main() -> None:
    folder = Path(sys.argv[1])
    on_gpu = torch.cuda.is_available()
    modules = {}
    for path in sorted(folder.glob("*.pth")):
        if path.stem == "inputs":
            continue
        state = torch.load(path)
        settings = [("", "auto")] if path.stem == "fastest" or not on_gpu else [("", False), (", CUDA graph", True)]
        for label, graph in settings:
            module = ttb.TRTModule(cuda_graph=graph)
            module.load_state_dict(state)
            modules[path.stem + label] = module
    given = torch.load(folder / "inputs.pth")
    inputs = given if isinstance(given, dict) else dict(enumerate(given))
    args = [] if isinstance(given, dict) else [inputs[i] for i in range(len(inputs))]
    kwargs = inputs if isinstance(given, dict) else {}
    for module in modules.values():
        for _ in range(10):
            module(*args, **kwargs)
    times: dict[str, list[float]] = {name: [] for name in modules}
    order = random.Random()
    ended = time.monotonic() + SECONDS
    for _ in range(CALLS):
        name = order.choice(list(modules))
        times[name].append(timed(modules[name], args, kwargs) if on_gpu else walled(modules[name], args, kwargs))
        if time.monotonic() > ended:
            break
    medians = {name: statistics.median(found) for name, found in times.items()}
    chosen = medians.pop("fastest")
    best = min(medians, key=medians.__getitem__)
    print(json.dumps({
        "milliseconds": {**medians, "fastest": chosen},
        "best": best,
        "ratio": chosen / medians[best],
        "within_3_percent": chosen <= 1.03 * medians[best],
        "calls": min(map(len, times.values())),
        "cuda_graph": modules["fastest"].cuda_graph,
    }))  # fmt: skip


def timed(module: torch.nn.Module, args: list, kwargs: dict) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    module(*args, **kwargs)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def walled(module: torch.nn.Module, args: list, kwargs: dict) -> float:
    began = time.perf_counter()
    module(*args, **kwargs)
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    main()
