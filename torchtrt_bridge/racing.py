"""Several compiled modules of one model against one another, each plain and through a CUDA graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from .backends.base import Place
from .capture import CapturedModel
from .dynamic import resize, shapes_for
from .measuring import measure

if TYPE_CHECKING:
    from .runtime.module import TRTModule


@dataclasses.dataclass(frozen=True)
class Lap:
    """The time of one module's calls, the median in seconds; ``graph``: whether they went through a CUDA graph."""

    name: str
    graph: bool
    seconds: float

    def __str__(self) -> str:
        return f"{self.name} with a CUDA graph" if self.graph else self.name


def race(
    modules: Mapping[str, TRTModule], captured: CapturedModel, place: Place, cuda_graph: bool | str, budget: float
) -> list[Lap]:
    """All ``modules`` of ``captured``, at its usual sizes, fastest first.

    Args:
        cuda_graph: ``"auto"`` measures each plain and through a CUDA graph, where it can have one; True or False that
            alone.
        budget: most seconds that the rounds take.
    """
    signature = captured.signature
    shapes = shapes_for(signature.inputs, {name: max(1, dim.opt) for name, dim in signature.dims.items()})
    inputs = [resize(tensor, shape).to(place.device) for tensor, shape in zip(captured.inputs, shapes)]
    laps: dict[str, Lap] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name, module in modules.items():
        for graph in (False, True) if cuda_graph == "auto" else (bool(cuda_graph),):
            run = module.execution(graph)
            if run is not None:
                lap = Lap(name, graph, 0.0)
                laps[str(lap)], calls[str(lap)] = lap, _call(run, inputs)
    timings = measure(calls, place.device, budget=budget)
    return [dataclasses.replace(laps[timing.name], seconds=timing.median) for timing in timings]


def _call(run: Callable[[list[torch.Tensor]], object], inputs: list[torch.Tensor]) -> Callable[[], object]:
    return lambda: run(inputs)
