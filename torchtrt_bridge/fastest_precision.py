"""``precision="fastest"``: the model in every precision that can be had, and of those that are right the fastest.

What is right is for the user to say: by an error against the eager model (``max_error``), or by a metric of their own.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from .backends.base import Place
from .capture import CapturedModel
from .errors import ON_CPU, BridgeError, InvalidOption, RunsOnCPU, VerificationFailed
from .precision import Precision
from .racing import Lap, race
from .verify import Tolerance

if TYPE_CHECKING:
    from .asked import Options
    from .runtime.module import TRTModule

_log = logging.getLogger("torchtrt_bridge")

NAME = "fastest"
CANDIDATES = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")
"""fp32 comes before tf32: TensorRT for RTX decides on TF32 once a process, and fp32 is what the others are held to."""

BUDGET_S = 5.0
"""Most seconds that the rounds of the measurement take."""

Make = Callable[["Options"], "TRTModule"]


@dataclasses.dataclass(frozen=True)
class Criterion:
    """What a module must hold to be chosen.

    Args:
        max_error: the largest relative L2 error of a result against the eager model's; of an integer or bool result,
            the largest share of elements that differ.
        metric: instead, a function of a module that is called as the model is; more is better.
        target: the least that ``metric`` may be.

    Raises:
        InvalidOption: neither is given, or both, or no numbers.
    """

    max_error: float | None = None
    metric: Callable[[nn.Module], float] | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        if (self.max_error is None) == (self.metric is None) or (self.metric is None) != (self.target is None):
            raise InvalidOption(
                "precision='fastest' needs to know what is right: give max_error=, the largest relative L2 error"
                " against eager, or metric= with metric_target=, the least that metric(module) may be."
            )
        if self.metric is not None and not callable(self.metric):
            raise InvalidOption(f"metric={self.metric!r}: give a function of a module.")
        if self.max_error is not None and (not isinstance(self.max_error, (int, float)) or not self.max_error > 0):
            raise InvalidOption(f"max_error={self.max_error!r}: a relative L2 error is a number above 0.")
        if self.target is not None and not isinstance(self.target, (int, float)):
            raise InvalidOption(f"metric_target={self.target!r}: give a number.")

    @classmethod
    def of(cls, precision: Any, max_error: Any, metric: Any, target: Any, verify: Any) -> Criterion | None:
        """The criterion of ``precision="fastest"``; None for another precision.

        Raises:
            InvalidOption: as above; or a criterion for another precision; or settings of the verification beside one.
        """
        if not isinstance(precision, str) or precision != NAME:
            for name, value in (("max_error", max_error), ("metric", metric), ("metric_target", target)):
                if value is not None:
                    raise InvalidOption(f"{name}= is for precision='fastest', and this is precision={precision!r}.")
            return None
        if verify is not True:
            raise InvalidOption(f"verify={verify!r}: with precision='fastest', max_error= or metric= is what decides")
        return cls(max_error, metric, target)

    @property
    def name(self) -> str:
        """What is compared."""
        if self.metric is None:
            return "relative L2"
        return getattr(self.metric, "__name__", type(self.metric).__name__)

    @property
    def tolerance(self) -> Tolerance:
        """What the verification holds a module to; NaN and Inf where eager has none never pass."""
        if self.max_error is None:
            return Tolerance(math.inf, math.inf, 1.0)
        return Tolerance(self.max_error, math.inf, min(1.0, self.max_error))

    def judge(self, module: TRTModule) -> tuple[float, bool]:
        """The score of a verified module, and whether that will do."""
        if self.metric is None:
            return _error(module.report.verification), True
        score = float(self.metric(module))
        assert self.target is not None
        return score, score >= self.target


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What became of one precision.

    Args:
        precision: ``"fp32"``, ``"tf32"``, ``"bf16"``, ``"fp16"``, ``"fp8"`` or ``"int8"``.
        outcome: ``"chosen"``; ``"slower"``; ``"wrong"``, where it is not right enough; ``"failed"``, where it was not
            built or cannot be had here.
        reason: one line, empty where it was chosen.
        score: the largest relative L2 error, or the metric; None where there is none.
        by: what the score is: ``"relative L2"``, or the metric's name.
        milliseconds: median time of a call, where it was measured.
        seconds: wall time of building and verifying it.
    """

    precision: str
    outcome: str
    reason: str = ""
    score: float | None = None
    by: str = ""
    milliseconds: float | None = None
    seconds: float = 0.0


def fastest_precision(
    make: Make, options: Options, criterion: Criterion, captured: CapturedModel, place: Place
) -> TRTModule:
    """The module of the fastest precision that meets ``criterion``, with a row for each in its report.

    Args:
        make: compiles the captured model as options say, verified.
        options: all that was asked for; its precision is replaced.
        captured: the model, before it is quantized; its usual sizes are measured.

    Raises:
        InvalidOption: the result is for a GPU elsewhere.
        VerificationFailed: no precision is right enough; the message has every row.
    """
    made: dict[str, TRTModule] = {}
    rows: dict[str, Candidate] = {}
    for name in CANDIDATES:
        began = time.perf_counter()
        module, row = _candidate(name, make, options, criterion, place)
        rows[name] = dataclasses.replace(row, by=criterion.name, seconds=time.perf_counter() - began)
        if module is not None:
            made[name] = module
    if not made:
        listed = "\n".join(f"  {row.precision}: {row.outcome}: {row.reason}" for row in rows.values())
        raise VerificationFailed(f"precision='fastest': no precision is right enough.\n{listed}")
    if not place.needs_plan:
        warnings.warn(ON_CPU, RunsOnCPU, stacklevel=4)
    laps = race(made, captured, place, options.cuda_graph, BUDGET_S)
    best = laps[0]
    for name in made:
        rows[name] = _measured(rows[name], next(lap for lap in laps if lap.name == name), best)
    module = made[best.name]
    module.settle_graph(best.graph)
    report = dataclasses.replace(
        module.report,
        cuda_graph=module.cuda_graph,
        precisions=tuple(dataclasses.asdict(row) for row in rows.values()),
        notes=(*module.report.notes, *_notes(rows)),
    )
    module.set_report(report)
    return module


def _candidate(
    name: str, make: Make, options: Options, criterion: Criterion, place: Place
) -> tuple[TRTModule | None, Candidate]:
    """The module in one precision, where it is right; and what became of it."""
    if name == "tf32" and not place.needs_plan:
        return None, Candidate(name, "failed", "a CPU has no TF32")
    build = dataclasses.replace(options.build, tf32=name == "tf32")
    own = Precision("fp32" if name == "tf32" else name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunsOnCPU)  # said once, for all
            module = make(dataclasses.replace(options, precision=own, build=build, verify=criterion.tolerance))
        score, right = criterion.judge(module)
    except VerificationFailed as error:
        return None, Candidate(name, "wrong", _line(error), _error(error.rows) if error.rows else None)
    except BridgeError as error:
        return None, Candidate(name, "failed", _line(error))
    if not right:
        return None, Candidate(name, "wrong", f"the metric is {score:.4g}, and {criterion.target:.4g} was asked", score)
    return module, Candidate(name, "slower", score=score)


def _measured(row: Candidate, lap: Lap, best: Lap) -> Candidate:
    chosen = lap is best
    reason = "" if chosen else f"{lap.seconds / best.seconds:.3f} times as long as {best}"
    return dataclasses.replace(
        row, outcome="chosen" if chosen else "slower", reason=reason, milliseconds=lap.seconds * 1e3
    )


def _notes(rows: Mapping[str, Candidate]) -> list[str]:
    """Low precisions that are no gain here, which few expect."""
    reference = rows["fp16"].milliseconds
    notes = []
    for name in ("int8", "fp8"):
        own = rows[name].milliseconds
        if own is not None and reference is not None and own >= reference:
            notes.append(f"{name} is not faster than fp16 here: {own:.3f} ms against {reference:.3f} ms, measured")
    return notes


def _error(rows: Sequence[Mapping[str, Any]]) -> float:
    """The largest error among the rows of a verification; infinite where a result is NaN and eager's is not."""
    if any(row["new_nonfinite"] for row in rows):
        return math.inf
    errors = [row["unequal"] if math.isnan(row["relative_l2"]) else row["relative_l2"] for row in rows]
    return max(errors, default=0.0)


def _line(error: BridgeError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
