"""Host time of one call of a compiled single-layer module, plain and through its CUDA graph, next to the bare engine
call and eager PyTorch.

    python benchmarks/overhead.py

Each figure is the median over rounds of 100 calls that are enqueued without waiting, the lowest of three such medians,
for other work on the host only adds to it; the GPU is idle before each round. Outputs are compared with eager first.
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


LAYERS = {
    "nn.ReLU, fp32": (torch.nn.ReLU(), torch.float32, "fp32"),
    "nn.Linear(64, 64), fp32": (torch.nn.Linear(64, 64), torch.float32, "fp32"),
    "nn.Linear(64, 64), fp16 with fp32 inputs": (torch.nn.Linear(64, 64), torch.float32, "fp16"),
}


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; us of host time a call")
    print(f"{'':<42}{'bare engine':>12}{'compiled':>10}{'by keyword':>12}{'CUDA graph':>12}{'kept':>8}{'eager':>8}")
    for name, (layer, dtype, precision) in LAYERS.items():
        torch.manual_seed(0)
        model = layer.eval().cuda()
        x = torch.randn(8, 64, device="cuda", dtype=dtype)
        fast = ttb.compile(model, (x,), precision=precision, cuda_graph=False)
        graphed = ttb.TRTModule(cuda_graph=True)
        graphed.load_state_dict(fast.state_dict())
        for _ in range(4):
            torch.testing.assert_close(fast(x), model(x), rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(graphed(x), model(x), rtol=2e-2, atol=2e-2)
        slot = next(iter(fast._execution._slots.values()))
        context, stream = slot.context.trt, torch.cuda.current_stream().cuda_stream
        keep = fast(x)  # holds the addresses that the context has
        held: list[torch.Tensor] = []

        def keeping(graphed=graphed, x=x, held=held):  # the result before is let go when the next one is there
            held[:] = [graphed(x)]

        with torch.no_grad():
            calls: list[Callable[[], object]] = [
                lambda: context.execute_async_v3(stream),  # noqa: B023
                lambda: fast(x),  # noqa: B023
                lambda: fast(input=x),  # noqa: B023
                lambda: graphed(x),  # noqa: B023
                keeping,
                lambda: model(x),  # noqa: B023
            ]
            bare, compiled, keyword, graph, kept, eager = (min(host_us(call) for _ in range(3)) for call in calls)
        del keep
        print(f"{name:<42}{bare:>12.2f}{compiled:>10.2f}{keyword:>12.2f}{graph:>12.2f}{kept:>8.2f}{eager:>8.2f}")


if __name__ == "__main__":
    main()
