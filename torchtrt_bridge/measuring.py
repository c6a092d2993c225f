"""Which of several calls is fastest here: warm, in interleaved rounds, until the order is settled or the time is up.

Each round calls every candidate once, in random order, so that a clock that drifts drifts for all of them. On a GPU a
call's time is what lies between two CUDA events around it on an idle stream: what a caller waits for, launches too.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

_WARM = 5  # calls before the first round: kernels are compiled and chosen, a CUDA graph is captured
_LEAST = 15  # rounds before anything is concluded
_MOST = 2000
_SAME = 0.01  # closer than this is the same
_HOPELESS = 1.5  # so much slower than the best is not measured on
_SAMPLE_S = 2e-4  # on the CPU, calls are repeated until a sample is this long


@dataclasses.dataclass(frozen=True)
class Timing:
    """The time of one candidate's calls, in seconds: the median over ``rounds``, and the quartiles."""

    name: str
    median: float
    lower: float
    upper: float
    rounds: int

    @property
    def uncertainty(self) -> float:
        """Half the width of an interval that the true median is in, nineteen times of twenty (the notch of a box
        plot: McGill, Tukey and Larsen, 1978)."""
        return 1.57 * (self.upper - self.lower) / self.rounds**0.5


def measure(
    calls: Mapping[str, Callable[[], object]], device: torch.device, *, budget: float = 5.0, seed: int = 0
) -> tuple[Timing, ...]:
    """The timings of ``calls`` (without arguments), fastest first.

    Args:
        device: where they run; a GPU is timed by its own events.
        budget: most seconds that all rounds together may take.
    """
    shuffle = random.Random(seed).shuffle
    for call in calls.values():
        for _ in range(_WARM):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    sampler = _on_gpu(device) if device.type == "cuda" else _on_cpu(calls)
    racing = list(calls)
    deadline = time.perf_counter() + budget
    for number in range(1, _MOST + 1):
        shuffle(racing)
        for name in racing:
            samples[name].append(sampler(name, calls[name]))
        if number >= _LEAST:
            found = _timings(samples)
            best = found[0]
            if all(_settled(best, other) for other in found[1:]):
                break
            limit = _HOPELESS * best.median
            racing = [t.name for t in found if t.median - t.uncertainty <= limit and t.name in racing]
        if time.perf_counter() > deadline and number >= 3:
            break
    return _timings(samples)


def _timings(samples: Mapping[str, list[float]]) -> tuple[Timing, ...]:
    found = []
    for name, times in samples.items():
        lower, median, upper = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        found.append(Timing(name, median, lower, upper, len(times)))
    return tuple(sorted(found, key=lambda timing: timing.median))


def _settled(best: Timing, other: Timing) -> bool:
    """Whether it is known that ``best`` is faster, or that the two are the same."""
    apart = other.median - best.median
    uncertain = best.uncertainty + other.uncertainty
    return apart > uncertain or (apart <= _SAME * best.median and uncertain <= _SAME * best.median)


def _on_gpu(device: torch.device) -> Callable[[str, Callable[[], object]], float]:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample(name: str, call: Callable[[], object]) -> float:
        with torch.cuda.device(device):
            torch.cuda.synchronize(device)
            start.record()
            call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3

    return sample


def _on_cpu(calls: Mapping[str, Callable[[], object]]) -> Callable[[str, Callable[[], object]], float]:
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        began = time.perf_counter()
        call()
        repeats[name] = min(1000, max(1, int(_SAMPLE_S / max(1e-9, time.perf_counter() - began))))

    def sample(name: str, call: Callable[[], object]) -> float:
        began = time.perf_counter()
        for _ in range(repeats[name]):
            call()
        return (time.perf_counter() - began) / repeats[name]

    return sample
