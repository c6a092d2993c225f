"""How a model is quantized, where the defaults are not wanted."""

from __future__ import annotations

import dataclasses

from ..errors import InvalidOption, nearest

METHODS = ("mse", "entropy", "percentile", "max")
WEIGHTS = ("int8", "int4", "fp8")
OTHERS = ("fp32", "fp16", "bf16")


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Settings of int8 and fp8, for ``compile(..., quantize=Quantization(...))``.

    Args:
        method: how an activation's range is chosen from its histogram: ``"mse"`` (the smallest squared error),
            ``"entropy"`` (the smallest Kullback-Leibler divergence, as TensorRT's calibrator did), ``"percentile"``
            or ``"max"`` (everything that was seen).
        percentile: of the values' magnitudes that are inside the range, for ``method="percentile"``: above 50, to 100.
        smooth: 0 to 1: how much of the outliers of a linear layer's input goes into its weight (SmoothQuant); its range
            is then the largest value that is left. 0 leaves them where they are. int8 alone: fp8 has room for outliers.
        other: the precision of what is not quantized: ``"fp32"``, ``"fp16"`` or ``"bf16"``. None: fp16 in TensorRT
            plans, fp32 on the CPU.
        attention: quantize the matrix products inside attentions too. They are spelled out for that, which costs more
            than it saves where the runtime has one kernel for a whole attention in 16 bits.
        last_layer: quantize the layers that make the model's results too.
        weight_only: ``"int8"``, ``"int4"`` or ``"fp8"``: only the weights of linear layers are quantized, and
            ``precision=`` is what is computed in. Needs no data.
        group: how many weights in a row share a scale, for ``weight_only="int4"``.
        batches: how many batches of the calibration data are used at most. None: all.

    Raises:
        InvalidOption: a value that the field cannot have.
    """

    method: str = "mse"
    percentile: float = 99.99
    smooth: float = 0.8
    other: str | None = None
    attention: bool = False
    last_layer: bool = False
    weight_only: str | None = None
    group: int = 128
    batches: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, METHODS),
            ("other", self.other, (None, *OTHERS)),
            ("weight_only", self.weight_only, (None, *WEIGHTS)),
        ):
            if value not in known:
                hint = nearest(value, [k for k in known if k]) if isinstance(value, str) else ""
                raise InvalidOption(f"Quantization({name}={value!r}): there is {', '.join(map(repr, known))}.{hint}")
        if not 50 < self.percentile <= 100:
            raise InvalidOption(f"Quantization(percentile={self.percentile!r}): give a number above 50, to 100.")
        if not 0 <= self.smooth <= 1:
            raise InvalidOption(f"Quantization(smooth={self.smooth!r}): give a number from 0 to 1.")
        if self.group < 1 or self.group & (self.group - 1):
            raise InvalidOption(f"Quantization(group={self.group!r}): give a power of two, such as 64 or 128.")
        if self.batches is not None and self.batches < 1:
            raise InvalidOption(f"Quantization(batches={self.batches!r}): give a positive number, or None for all.")
