"""From a histogram to the range that is quantized: the magnitude that becomes the format's largest number.

* ``"max"`` keeps everything that was seen; one outlier makes every step coarse.
* ``"percentile"`` keeps that share of the values, and clips the rest.
* ``"mse"`` has the smallest squared error between the values and what they are quantized to.
* ``"entropy"`` has the smallest Kullback-Leibler divergence between their distributions, the method of TensorRT's int8
  calibrator (S. Migacz, "8-bit Inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

import torch

from ..errors import InvalidOption
from .formats import Format
from .histogram import BINS, Histogram
from .settings import Quantization

_CANDIDATES = 128  # ranges that "mse" tries, from 1/128 of the largest magnitude to all of it
_LEVELS = 128  # magnitudes that int8 has, zero among them
_STEP = 16  # bins between two ranges that "entropy" tries


def choose_range(histogram: Histogram, form: Format, settings: Quantization) -> float:
    """The magnitude that becomes the largest number of ``form``; 0 where all values were 0.

    Raises:
        InvalidOption: ``method="entropy"``, which speaks of evenly spaced levels, for fp8.
    """
    if settings.method == "entropy" and form.dtype.is_floating_point:
        raise InvalidOption(
            f"Quantization(method='entropy') is for int8, whose levels are evenly spaced, and this is {form.name}."
            " Choose 'mse', 'percentile' or 'max'."
        )
    if not histogram.amax:
        return 0.0
    if settings.method == "max":
        return histogram.amax
    if settings.method == "percentile":
        return min(_percentile(histogram, settings.percentile), histogram.amax)
    found = _least_squares(histogram, form) if settings.method == "mse" else _least_divergence(histogram)
    return min(found, histogram.amax)


def _percentile(histogram: Histogram, percentile: float) -> float:
    share = histogram.counts.cumsum(0) / histogram.counts.sum()
    index = int(torch.searchsorted(share, torch.tensor(percentile / 100, dtype=share.dtype)))
    return (min(index, BINS - 1) + 1) * histogram.limit / BINS


def _least_squares(histogram: Histogram, form: Format) -> float:
    used = histogram.counts > 0
    values, weights = histogram.centers[used], histogram.counts[used]
    candidates = histogram.amax * torch.arange(1, _CANDIDATES + 1, dtype=torch.float64) / _CANDIDATES
    scales = candidates[:, None] / form.max
    errors = ((form.rounded(values / scales) * scales - values).square() * weights).sum(1)
    return candidates[errors.argmin()].item()


def _least_divergence(histogram: Histogram) -> float:
    counts = histogram.counts.clone()
    counts[0] = counts[1]  # the zeros of a ReLU are exact in any range, and would outweigh all else
    last = int(counts.nonzero().max()) + 1 if counts.any() else _LEVELS
    best, best_range = float("inf"), histogram.amax
    for bins in range(_LEVELS, max(last, _LEVELS) + _STEP, _STEP):
        bins = min(bins, BINS)
        divergence = _divergence(counts, bins)
        if divergence < best:
            best, best_range = divergence, bins * histogram.limit / BINS
    return best_range


def _divergence(counts: torch.Tensor, bins: int) -> float:
    """Kullback-Leibler divergence of the distribution clipped to ``bins`` from the same in 128 levels."""
    inside = counts[:bins]
    clipped = inside.clone()
    clipped[-1] += counts[bins:].sum()
    level = (torch.arange(bins) * _LEVELS) // bins
    occupied = (inside > 0).double()
    sums = torch.zeros(_LEVELS, dtype=torch.float64).index_add(0, level, inside)
    sizes = torch.zeros(_LEVELS, dtype=torch.float64).index_add(0, level, occupied)
    quantized = (sums / sizes.clamp_min(1))[level] * occupied
    if not quantized.sum():
        return float("inf")
    p, q = clipped / clipped.sum(), quantized / quantized.sum()
    both = (p > 0) & (q > 0)
    missing = p[(p > 0) & (q == 0)].sum()  # values for which the levels have no number
    return float((p[both] * (p[both] / q[both]).log()).sum() + missing * 20)
