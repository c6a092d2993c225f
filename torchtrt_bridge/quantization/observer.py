"""What calibration sees, as an observer of torchao's PT2E flow."""

from __future__ import annotations

from typing import Any

import torch
from torchao.quantization.pt2e.observer import ObserverBase

from .formats import Format
from .histogram import Histogram
from .ranges import choose_range
from .settings import Quantization


class MagnitudeObserver(ObserverBase):  # type: ignore[misc]
    """Keeps a :class:`~.histogram.Histogram` of what goes through it, and chooses the range that ``settings`` ask for.

    ``strange`` counts the values that were NaN or infinite; they are not in the histogram. With ``keeps_channels``, the
    magnitudes of the last axis' channels are kept too.
    """

    def __init__(self, form: Format, settings: Quantization, qscheme: Any = torch.per_tensor_symmetric, **_: Any):
        super().__init__(dtype=form.dtype)
        self.form, self.settings, self.qscheme = form, settings, qscheme
        self.quant_min, self.quant_max = form.min, form.max
        self.histogram, self.strange, self.keeps_channels = Histogram.empty(), 0, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        finite = x.isfinite()
        if not finite.all():
            self.strange += int((~finite).sum())
            self.histogram = self.histogram.with_values(x[finite])
            return x
        self.histogram = self.histogram.with_values(x)
        if self.keeps_channels and x.numel():
            self.histogram = self.histogram.with_channels(x)
        return x

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """The scale and the zero point (0)."""
        amax = choose_range(self.histogram, self.form, self.settings)
        return torch.tensor([amax / self.form.max or 1.0]), torch.zeros(1, dtype=torch.int64)
