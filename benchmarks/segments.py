"""What a crossing between TensorRT and PyTorch costs, and from how many operators on it is won back. Needs a GPU.

    python benchmarks/segments.py                   # a table for docs/hybrid.md

A model of ``PyTorch, n pointwise operators, PyTorch, ...`` runs twice: as it is (the operators in TensorRT segments
between an operator that TensorRT does not take), and with everything in PyTorch by the same runtime. The difference
per segment, over n, is the time that a TensorRT segment of n operators wins or loses. The same for a linear layer, and
for segments whose size depends on the data, which are set to a new size in every call.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge import partition
from torchtrt_bridge.measuring import measure

SEGMENTS = 4


@torch.library.custom_op("bridge_benchmarks::turn", mutates_args=())
def turn(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1)


@turn.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Chain(nn.Module):
    """``SEGMENTS`` times: an operator that only PyTorch has, then ``count`` pointwise ones, or a linear layer."""

    def __init__(self, count: int, width: int, linear: bool, data: bool):
        super().__init__()
        self.count, self.data = count, data
        self.linear = nn.ModuleList(nn.Linear(width, width) for _ in range(SEGMENTS)) if linear else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.data:
            x = x[torch.where(x[:, 0] > 0)[0]]
        for index in range(SEGMENTS):
            x = torch.ops.bridge_benchmarks.turn(x)
            for _ in range(self.count):
                x = torch.sin(x)
            if self.linear is not None:
                x = self.linear[index](x)
        return torch.ops.bridge_benchmarks.turn(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds for each line")
    budget = parser.parse_args().budget
    warnings.simplefilter("ignore")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, fp16, us per segment\n")
    print("| segment | rows | PyTorch | TensorRT | won |\n|---|---|---|---|---|")
    lines = {False: ((3, False), (8, False), (16, False), (32, False), (0, True)), True: ((16, False), (0, True))}
    for data, kinds in lines.items():
        for count, linear in kinds:
            for rows, width in ((64, 256), (4096, 1024)):
                line(count, rows, width, linear, data, budget)


def line(count: int, rows: int, width: int, linear: bool, data: bool, budget: float) -> None:
    torch.manual_seed(0)
    model = Chain(count, width, linear, data).eval().half().cuda()
    xs = [torch.randn(rows, width, device="cuda", dtype=torch.half) for _ in range(4)]  # as many different sizes
    worth = partition._is_worth_it
    try:
        partition._is_worth_it = lambda piece, smallest: True
        fast = ttb.compile(model, xs[0], verify=False, hybrid=True)
        slow = torch_alone(model, xs[0])
    finally:
        partition._is_worth_it = worth
    with torch.no_grad():
        for x in xs:
            torch.testing.assert_close(fast(x), slow(x), rtol=2e-2, atol=2e-2)

    def calls(module: nn.Module):
        def call() -> None:
            for x in xs:
                module(x)

        return call

    with torch.no_grad():
        timings = measure({"PyTorch": calls(slow), "TensorRT": calls(fast)}, torch.device("cuda"), budget=budget)
    times = {timing.name: timing.median * 1e6 / len(xs) / SEGMENTS for timing in timings}
    what = "linear" if linear else f"{count} pointwise"
    name = f"{what}{', size by data' if data else ''}"
    won = times["PyTorch"] - times["TensorRT"]
    print(f"| {name} | {rows}x{width} | {times['PyTorch']:.1f} | {times['TensorRT']:.1f} | {won:+.1f} |", flush=True)


def torch_alone(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """``model`` as one PyTorch segment."""
    from torchtrt_bridge import hybrid

    own = hybrid.cut
    try:
        hybrid.cut = lambda program, refused: own(program, {n.name: "all" for n in program.graph.nodes})
        return ttb.compile(model, x, verify=False, hybrid="allow_torch", backend="onnx")
    finally:
        hybrid.cut = own


if __name__ == "__main__":
    main()
