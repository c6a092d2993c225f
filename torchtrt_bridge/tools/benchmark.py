"""ttb.benchmark(): which of several callables is fastest on the same inputs."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..errors import InvalidInput, InvalidOption
from ..measuring import Timing, measure


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Timings of callables on the same inputs, fastest first.

    Args:
        device: where they ran; a GPU is timed by its own events.
        timings: rows of :class:`~torchtrt_bridge.measuring.Timing`; times are in seconds.
    """

    device: str
    timings: tuple[Timing, ...]

    @property
    def fastest(self) -> str:
        """The name of the fastest."""
        return self.timings[0].name

    def __getitem__(self, name: str) -> Timing:
        """The timing of one, by name."""
        return next(timing for timing in self if timing.name == name)

    def __iter__(self) -> Iterator[Timing]:
        return iter(self.timings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    def __repr__(self) -> str:
        width = max(8, *(len(timing.name) for timing in self.timings)) + 2
        lines = [f"{'':<{width}}{'median ms':>11}{'quartiles':>19}{'times':>8}{'rounds':>8}   on {self.device}"]
        lines += [f"{n:<{width}}{m:>11}{q:>19}{t:>8}{r:>8}" for n, m, q, t, r in self._rows()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{title}</th>" for title in ("", "median ms", "quartiles", "times", "rounds"))
        body = ""
        for name, *cells in self._rows():
            numbers = "".join(f"<td style='text-align:right'>{cell}</td>" for cell in cells)
            body += f"<tr><td style='text-align:left'>{html.escape(name)}</td>{numbers}</tr>"
        return f"<table><caption>on {html.escape(self.device)}</caption><tr>{head}</tr>{body}</table>"

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        best = self.timings[0].median
        return [
            (
                timing.name,
                f"{timing.median * 1e3:.4f}",
                f"{timing.lower * 1e3:.4f}-{timing.upper * 1e3:.4f}",
                f"{timing.median / best:.2f}",
                str(timing.rounds),
            )
            for timing in self.timings
        ]


def benchmark(*calls: Callable[..., Any], inputs: Any, budget: float = 5.0, **named: Callable[..., Any]) -> Benchmark:
    """Time ``calls`` on the same inputs: warm, in interleaved rounds of random order, until the order is settled.

    On a GPU, a call's time is what lies between two CUDA events around it on an idle stream; on the CPU, wall time.
    Gradients are off.

    Args:
        calls: modules or functions, called what they are; give them by keyword to name them.
        inputs: as for :func:`torchtrt_bridge.compile`: a tensor, a tuple, or a dict of keyword arguments.
        budget: most seconds for all rounds together.

    Raises:
        InvalidOption: nothing to time, or something that cannot be called.
        InvalidInput: the inputs are on several devices.

    Example:
        >>> import torch, torchtrt_bridge as ttb
        >>> found = ttb.benchmark(inputs=torch.ones(8), budget=0.1, sine=torch.sin, cosine=torch.cos)
        >>> sorted(timing.name for timing in found)
        ['cosine', 'sine']
    """
    candidates = {**_named(calls), **named}
    for name, call in candidates.items():
        if not callable(call):
            raise InvalidOption(f"{name!r} is a {type(call).__name__}, which cannot be called.")
    if not candidates:
        raise InvalidOption("There is nothing to time: give modules or functions.")
    args = () if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    devices = {leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)}
    if len(devices) > 1:
        raise InvalidInput(f"The inputs are on {', '.join(sorted(map(str, devices)))}; they have to be on one device.")
    device = devices.pop() if devices else torch.device("cpu")
    with torch.no_grad():
        bound = {name: _bound(call, args, kwargs) for name, call in candidates.items()}
        return Benchmark(str(device), measure(bound, device, budget=budget))


def _bound(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    return lambda: call(*args, **kwargs)


def _named(calls: tuple[Callable[..., Any], ...]) -> dict[str, Callable[..., Any]]:
    """Each under the name of its function or class, told apart where several have the same."""
    found: dict[str, Callable[..., Any]] = {}
    for call in calls:
        base = getattr(call, "__name__", type(call).__name__)
        name, number = base, 1
        while name in found:
            number += 1
            name = f"{base} {number}"
        found[name] = call
    return found
