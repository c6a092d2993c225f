"""What ttb.compare() found: a row for each layer, printable, as HTML, as a plot."""

from __future__ import annotations

import dataclasses
import html
import math
from typing import TYPE_CHECKING, Any

from ..plots import figure_class
from ..tables import comparison, facts
from ..verify import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_FP16 = 65504.0
SMALLEST_FP16 = 2.0**-14
"""fp16's smallest number of full precision; below it, bits are lost one by one."""

_MOST_LINES = 40


@dataclasses.dataclass(frozen=True)
class Layer:
    """One tensor inside the model: eager's, and the compiled module's.

    Args:
        place: the path of the module that computes it; ``""`` is the model itself.
        operator: by which operator: ``"linear"``.
        shape: of this call.
        max_error: largest ``|compiled - eager|``.
        relative_l2: ``||compiled - eager|| / ||eager||``: all that went wrong up to here.
        cosine: of the angle between the two.
        own_error: the relative L2 of the layer alone: the compiled result against what eager makes of the *compiled*
            module's own intermediate results. Errors from before are not in it.
        largest, largest_compiled: ``max|...|`` of eager's and of the compiled tensor.
        nonfinite: how many elements are NaN or Inf where eager's are finite.
        subnormal: share of eager's nonzero elements that are below 6.1e-5, where fp16 loses bits, and below 6e-8 all.
        departs: ``own_error`` is out of line, or the layer itself makes the first NaN or Inf.
    """

    place: str
    operator: str
    shape: tuple[int, ...]
    max_error: float
    relative_l2: float
    cosine: float
    own_error: float
    largest: float
    largest_compiled: float
    nonfinite: int
    subnormal: float
    departs: bool

    @property
    def name(self) -> str:
        """The place and the operator, as TensorRT's layers are named."""
        return f"{self.place}/{self.operator}" if self.place else self.operator


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The compiled module against eager, layer by layer.

    Args:
        precision, backend, runtime: of the compiled module.
        level: ``"module"`` or ``"operator"``.
        layers: in the graph's order.
        expected: the ``own_error`` up to which a layer is in line.
        results: the module's own results against eager's: rows of :class:`~torchtrt_bridge.verify.Row`.
        notes: how the intermediate results were had, and what that leaves open.
    """

    precision: str
    backend: str
    runtime: str
    level: str
    layers: tuple[Layer, ...]
    expected: float
    results: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Layer | None:
        """The first layer that departs; None where none does."""
        return next((layer for layer in self.layers if layer.departs), None)

    @property
    def worst(self) -> Layer | None:
        """The layer with the largest error of its own."""
        return max(self.layers, key=lambda layer: _order(layer.own_error), default=None)

    @property
    def overflows(self) -> tuple[Layer, ...]:
        """The layers whose values in eager come within a factor of four of fp16's largest number, 65504, or pass it."""
        return tuple(layer for layer in self.layers if layer.largest > LARGEST_FP16 / 4)

    def table(self) -> list[dict[str, Any]]:
        """A dict for each layer, in order, as ``pandas.DataFrame`` takes them."""
        return [dataclasses.asdict(layer) for layer in self.layers]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)

    def plot(self) -> Figure:
        """Errors and ranges along the graph, as a matplotlib figure.

        Raises:
            BackendUnavailable: matplotlib is missing.
        """
        figure = figure_class()(figsize=(max(6.0, 0.22 * len(self.layers)), 6.5), layout="constrained")
        errors, ranges = figure.subplots(2, 1, sharex=True)
        at = range(len(self.layers))
        errors.plot(at, [_drawn(layer.relative_l2) for layer in self.layers], "o-", label="relative L2 up to here")
        errors.plot(at, [_drawn(layer.own_error) for layer in self.layers], "s", label="the layer's own")
        errors.axhline(self.expected, linestyle=":", color="gray", label="in line up to")
        ranges.plot(at, [_drawn(layer.largest) for layer in self.layers], "o-", label="max|eager|")
        ranges.axhline(LARGEST_FP16, linestyle=":", color="gray", label="fp16's largest")
        for index, layer in enumerate(self.layers):
            for axes in (errors, ranges) if layer.departs else ():
                axes.axvspan(index - 0.5, index + 0.5, color="tab:red", alpha=0.15)
        for axes in (errors, ranges):
            axes.set_yscale("log")
            axes.legend(fontsize="small")
        ranges.set_xticks(list(at), [layer.name for layer in self.layers], rotation=90, fontsize="small")
        errors.set_title(self.verdict, fontsize="medium", wrap=True)
        return figure

    @property
    def verdict(self) -> str:
        """One sentence: where it goes wrong."""
        layer, agree = self.first, all(row.passed for row in self.results)
        if layer is not None:
            what = f"an error of its own of {layer.own_error:.1e}, where {self.expected:.1e} is in line"
            if layer.nonfinite:
                what = f"{layer.nonfinite} NaN or Inf where eager is finite (max|eager| {layer.largest:.3g})"
            elif layer.subnormal > 0.5:
                what += f" ({layer.subnormal:.0%} of its values are too small for fp16)"
            return f"{layer.name} departs first: {what}.{' The results agree all the same.' if agree else ''}"
        if not self.layers:
            return "No intermediate result could be compared: none has a counterpart in what was compiled."
        if agree:
            return "No layer departs, and the results agree."
        return "No single layer departs: what is off in the results adds up over the layers, or lies outside of them."

    def __repr__(self) -> str:
        lines = [f"{key:<12}{value}" for key, value in self._facts()]
        shown = self._shown()
        width = max((len(layer.name) for layer in shown), default=0) + 2
        lines.append(f"{'':<2}{'layer':<{width}}" + "".join(f"{title:>12}" for title in _TITLES))
        for layer in shown:
            mark = "> " if layer.departs else "  "
            lines.append(f"{mark}{layer.name:<{width}}" + "".join(f"{cell:>12}" for cell in _cells(layer)))
        if len(shown) < len(self.layers):
            lines.append(f"  ... {len(shown)} of {len(self.layers)} layers, by their errors; table() has all")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{title}</th>" for title in ("layer", *_TITLES))
        body = ""
        for layer in self._shown():
            style = " style='background:#f8d7da;color:#000'" if layer.departs else ""
            cells = "".join(f"<td style='text-align:right'>{cell}</td>" for cell in _cells(layer))
            body += f"<tr{style}><td style='text-align:left'>{html.escape(layer.name)}</td>{cells}</tr>"
        rows = comparison([dataclasses.asdict(row) for row in self.results])
        return facts(self._facts()) + f"<table><tr>{head}</tr>{body}</table>" + rows

    def _facts(self) -> list[tuple[str, str]]:
        lines = [("compared", f"{self.precision} by {self.backend} ({self.runtime}) with eager")]
        lines += [("found", self.verdict)]
        lines += [("" if index else "results", str(row)) for index, row in enumerate(self.results)]
        near = [f"{layer.name} ({layer.largest:.3g})" for layer in self.overflows[:5]]
        if near:
            more = ", ..." if len(self.overflows) > len(near) else ""
            lines += [("near 65504", ", ".join(near) + more)]
        return lines + [("" if index else "notes", note) for index, note in enumerate(self.notes)]

    def _shown(self) -> list[Layer]:
        """All layers, or those with the largest errors of their own where there are many."""
        ranked = sorted(self.layers, key=lambda layer: (not layer.departs, -_order(layer.own_error)))
        chosen = {id(layer) for layer in ranked[:_MOST_LINES]}
        return [layer for layer in self.layers if id(layer) in chosen]


_TITLES = ("own error", "relative L2", "max error", "cosine", "max|eager|", "NaN or Inf", "subnormal")


def _cells(layer: Layer) -> tuple[str, ...]:
    return (
        _number(layer.own_error, ".1e"),
        _number(layer.relative_l2, ".1e"),
        _number(layer.max_error, ".1e"),
        _number(layer.cosine, ".6f"),
        f"{layer.largest:.3g}",
        str(layer.nonfinite),
        f"{layer.subnormal:.1%}",
    )


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _order(error: float) -> float:
    """NaN stands for what could not be told."""
    return -1.0 if math.isnan(error) else error


def _drawn(value: float) -> float:
    """A logarithmic axis has no zero."""
    return max(value, 1e-9) if math.isfinite(value) else math.nan
