"""What calibration remembers of a tensor: a histogram of its values' magnitudes, and their extremes."""

from __future__ import annotations

import dataclasses

import torch

BINS = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """``counts`` (float64 ``[2048]``, on the CPU) of the magnitudes from 0 to ``limit``, in bins of one width; ``low``
    and ``high`` are the smallest and the largest value. Quantization here is symmetric, so magnitudes are enough.

    ``channels``, where it is kept, is the largest magnitude at each index of the last axis (float32, on the CPU).
    """

    counts: torch.Tensor
    limit: float
    low: float
    high: float
    channels: torch.Tensor | None = None

    @classmethod
    def empty(cls) -> Histogram:
        return cls(torch.zeros(BINS, dtype=torch.float64), 0.0, float("inf"), float("-inf"))

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Histogram:
        return cls.empty().with_values(tensor)

    def with_values(self, tensor: torch.Tensor) -> Histogram:
        """The histogram with the values of ``tensor``, all finite, in it too."""
        if not tensor.numel():
            return self
        low, high = (value.item() for value in tensor.detach().aminmax())
        limit, counts = self._widened(max(-low, high))
        if limit:
            magnitudes = tensor.detach().abs().float().flatten()
            counts = counts + torch.histc(magnitudes, BINS, 0, limit).double().cpu()
        else:
            counts = counts.clone()
            counts[0] += tensor.numel()
        return dataclasses.replace(self, counts=counts, limit=limit, low=min(self.low, low), high=max(self.high, high))

    def with_channels(self, tensor: torch.Tensor) -> Histogram:
        """The histogram with the channels of ``tensor``, all finite, in :attr:`channels`."""
        channels = tensor.detach().abs().float().flatten(0, -2).amax(0).cpu()
        known = self.channels
        return dataclasses.replace(self, channels=channels if known is None else torch.maximum(known, channels))

    @property
    def amax(self) -> float:
        """The largest magnitude; 0 where no value was seen."""
        return max(-self.low, self.high, 0.0)

    @property
    def centers(self) -> torch.Tensor:
        """The magnitude in the middle of each bin."""
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * (self.limit / BINS)

    def _widened(self, amax: float) -> tuple[float, torch.Tensor]:
        """``limit`` doubled until it holds ``amax``, and the counts in bins as wide as that: two become one, so the
        counts stay exact."""
        if not self.limit:
            return amax, self.counts
        limit, counts = self.limit, self.counts
        while amax > limit:
            limit *= 2
            counts = torch.cat([counts.reshape(-1, 2).sum(1), torch.zeros(BINS // 2, dtype=counts.dtype)])
        return limit, counts
