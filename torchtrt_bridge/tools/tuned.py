"""What ttb.tune_precision() found: the mapping to paste, what led to it, and the compiled module."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..plots import figure_class
from ..tables import facts
from .trials import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..runtime.module import TRTModule

_MOST_LINES = 20


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How much a layer loses in the low precision.

    Args:
        layer: the path of its module; ``""`` is the model itself, without the modules in it.
        own: relative L2 of what it computes by itself, from eager's results of the layers before.
        model: relative L2 of the model's results where it is the only low layer.
        raised: whether it stays high in the end.
    """

    layer: str
    own: float
    model: float
    raised: bool


@dataclasses.dataclass(frozen=True)
class TunedPrecision:
    """The fewest layers found that must stay higher.

    Args:
        precision: for ``compile(..., precision=...)``.
        raised: the paths of the layers that stay in ``high``.
        low, high: the two precisions.
        measure: what was measured: ``"relative L2"``, or the name of the metric.
        target: the largest error, or the least metric, that was asked for.
        score: the compiled module's.
        low_score, high_score: of all layers in ``low``, and of all in ``high``, run by PyTorch.
        layers: the paths of all layers that compute in ``low`` where they may.
        sensitivities: of every layer, those that matter most first; empty where none has to be raised.
        trials: every candidate that was tried, in order.
        module: the compiled module.
    """

    precision: Mapping[str, str]
    raised: tuple[str, ...]
    low: str
    high: str
    measure: str
    target: float
    score: float
    low_score: float
    high_score: float
    layers: tuple[str, ...]
    sensitivities: tuple[Sensitivity, ...]
    trials: tuple[Trial, ...]
    module: TRTModule = dataclasses.field(repr=False, compare=False)

    def table(self) -> list[dict[str, Any]]:
        """A dict for each layer, those that matter most first, as ``pandas.DataFrame`` takes them."""
        return [dataclasses.asdict(row) for row in self.sensitivities]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the module."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "module"}
        rows = {"sensitivities": self.table(), "trials": [dataclasses.asdict(trial) for trial in self.trials]}
        return {**fields, "precision": dict(self.precision), **rows}

    def plot(self) -> Figure:
        """The layers' sensitivities and the trials, as a matplotlib figure.

        Raises:
            BackendUnavailable: matplotlib is missing.
        """
        rows = self.sensitivities[:_MOST_LINES]
        figure = figure_class()(figsize=(10, max(3.5, 0.25 * len(rows))), layout="constrained")
        layers, trials = figure.subplots(1, 2)
        ceiling = 10 * max([row.model for row in rows if math.isfinite(row.model)], default=1.0)
        lengths = [row.model if math.isfinite(row.model) else ceiling for row in rows]
        bars = layers.barh(range(len(rows)), lengths, color=["tab:red" if row.raised else "tab:blue" for row in rows])
        layers.bar_label(bars, ["" if math.isfinite(row.model) else "NaN or Inf" for row in rows], label_type="center")
        layers.set_yticks(range(len(rows)), [_name(row.layer) for row in rows], fontsize="small")
        layers.set_xscale("log")
        layers.invert_yaxis()
        layers.set_title(f"error of the model with that layer alone in {self.low}", fontsize="medium")
        for how, marker in (("program", "o"), ("compiled", "s")):
            ran = [trial for trial in self.trials if trial.how == how and math.isfinite(trial.score)]
            trials.plot([len(trial.raised) for trial in ran], [trial.score for trial in ran], marker, label=how)
        trials.axhline(self.target, linestyle=":", color="gray", label="target")
        trials.set_xlabel(f"layers in {self.high}")
        trials.set_ylabel(self.measure)
        trials.legend(fontsize="small")
        return figure

    def __repr__(self) -> str:
        lines = [f"{key:<11}{value}" for key, value in self._facts()]
        width = max((len(_name(row.layer)) for row in self.sensitivities[:_MOST_LINES]), default=0) + 2
        if self.sensitivities:
            lines.append(f"  {'layer':<{width}}{'own error':>12}{'the model':>12}   in")
        for row in self.sensitivities[:_MOST_LINES]:
            kept = self.high if row.raised else self.low
            lines.append(f"  {_name(row.layer):<{width}}{row.own:>12.1e}{row.model:>12.1e}   {kept}")
        if len(self.sensitivities) > _MOST_LINES:
            lines.append(f"  ... {_MOST_LINES} of {len(self.sensitivities)} layers; table() has all")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{title}</th>" for title in ("layer", "own error", "the model", "in"))
        body = ""
        for row in self.sensitivities[:_MOST_LINES]:
            cells = (f"{row.own:.1e}", f"{row.model:.1e}", self.high if row.raised else self.low)
            numbers = "".join(f"<td style='text-align:right'>{cell}</td>" for cell in cells)
            body += f"<tr><td style='text-align:left'>{html.escape(_name(row.layer))}</td>{numbers}</tr>"
        return facts(self._facts()) + f"<table><tr>{head}</tr>{body}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        compiled = sum(trial.how == "compiled" for trial in self.trials)
        ends = f"{self.low_score:.3g} with all in {self.low}, {self.high_score:.3g} with all in {self.high}"
        return [
            ("precision", repr(dict(self.precision))),
            ("raised", f"{len(self.raised)} of {len(self.layers)} layers to {self.high}"),
            ("reached", f"{self.measure} {self.score:.3g}, compiled; {self.target:.3g} was asked for"),
            ("otherwise", ends),
            ("tried", f"{len(self.trials)} candidates, {compiled} of them compiled"),
        ]


def _name(layer: str) -> str:
    return layer or "(the model itself)"
