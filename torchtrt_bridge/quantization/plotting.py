"""A calibration as pictures: each tensor's histogram, and where each method would clip it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOption, nearest
from ..plots import figure_class
from .formats import FORMATS
from .histogram import Histogram
from .ranges import choose_range
from .settings import METHODS, Quantization

if TYPE_CHECKING:
    from .calibration import Calibration

_MOST = 9
_COLUMNS = 3


def plot(calibration: Calibration, names: Sequence[str] | None) -> Any:
    """See :meth:`.calibration.Calibration.plot`.

    Raises:
        BackendUnavailable: matplotlib is missing.
        InvalidOption: a name that the calibration does not know, or no histogram at all.
    """
    new_figure = figure_class()
    histograms = calibration.histograms
    chosen = sorted(histograms, key=lambda name: -_outlier(histograms[name]))[:_MOST] if names is None else list(names)
    for name in chosen:
        if name not in histograms:
            raise InvalidOption(f"The calibration has no histogram of {name!r}.{nearest(name, histograms)}")
    if not chosen:
        raise InvalidOption("This calibration has ranges only, and no histograms to plot.")
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = new_figure(figsize=(4.5 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, name in zip(axes, chosen):
        _draw(axis, name, histograms[name])
    for axis in axes[len(chosen) :]:
        axis.remove()
    return figure


def _draw(axis: Any, name: str, histogram: Histogram) -> None:
    axis.fill_between(histogram.centers.numpy(), histogram.counts.numpy(), step="mid", color="0.75")
    for index, method in enumerate(METHODS):
        clipped = choose_range(histogram, FORMATS["int8"], Quantization(method=method))
        axis.axvline(clipped, color=f"C{index}", label=f"{method}: {clipped:.3g}")
    axis.set_xlim(0, 1.05 * histogram.amax or 1)
    axis.set_yscale("log")
    axis.set_title(name, fontsize="small")
    axis.set_xlabel("magnitude")
    axis.legend(fontsize="x-small")


def _outlier(histogram: Histogram) -> float:
    """How far the largest magnitude is from the root mean square."""
    total = histogram.counts.sum()
    if not total or not histogram.amax:
        return 0.0
    square = (histogram.centers.square() * histogram.counts).sum() / total
    return histogram.amax / (square.item() ** 0.5 or 1.0)
