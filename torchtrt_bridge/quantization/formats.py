"""The numbers that a quantized tensor has: symmetric int8 and fp8 (E4M3), signed int4 for weights."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Format:
    """``dtype`` holds the numbers; they go from ``min`` to ``max``, and a scale of ``amax / max`` uses all of them.

    int8 leaves -128 out, so that a range is symmetric, as TensorRT's is.
    """

    name: str
    dtype: torch.dtype
    min: int
    max: int

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, in units of the scale, as the nearest number of the format; in the dtype of ``x``."""
        x = x.clamp(self.min, self.max)
        return x.to(self.dtype).to(x.dtype) if self.dtype.is_floating_point else x.round()

    def quantized(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, in units of the scale, as numbers of the format."""
        return self.rounded(x).to(self.dtype)


FORMATS = {
    "int8": Format("int8", torch.int8, -127, 127),
    "int4": Format("int4", torch.int8, -7, 7),
    "fp8": Format("fp8", torch.float8_e4m3fn, -448, 448),
}
