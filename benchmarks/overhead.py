"""Host time of one call of a compiled single-layer module, next to the bare engine call and eager PyTorch.

    python benchmarks/overhead.py

Each figure is the median over rounds of 100 calls that are enqueued without waiting; the GPU is idle before each round.
Outputs are compared with eager first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

import torchtrt_bridge as ttb


def host_us(call: Callable[[], object], rounds: int = 60, calls: int = 100) -> float:
    """Median host time of ``call`` in microseconds."""
    for _ in range(calls):
        call()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(times)


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64).eval().cuda()
    x = torch.randn(8, 64, device="cuda")
    fast = ttb.compile(model, (x,), precision="fp16")
    torch.testing.assert_close(fast(x), model(x), rtol=2e-2, atol=2e-2)

    execution = fast._execution
    slot = next(iter(execution._slots.values()))
    context, stream = slot._context, torch.cuda.current_stream().cuda_stream
    keep = fast(x)  # holds the addresses that the context has
    with torch.no_grad():
        rows = {
            "bare execute_async_v3": lambda: context.execute_async_v3(stream),
            "compiled module": lambda: fast(x),
            "compiled module, by keyword": lambda: fast(input=x),
            "eager nn.Linear": lambda: model(x),
        }
        times = {name: [host_us(call) for _ in range(3)] for name, call in rows.items()}
    del keep
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {fast.provenance['flavour']} {fast.provenance['tensorrt']}")
    for name, values in times.items():
        print(f"{name:<30}{statistics.median(values):7.2f} us of host time a call")


if __name__ == "__main__":
    main()
