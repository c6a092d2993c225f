"""The quantization of ttb.tune_precision()'s candidates: the calibration data is run once, whatever is tried."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..backends.base import Place
from ..capture import CapturedModel
from ..errors import InvalidOption
from ..precision import Precision
from ..quantization.calibrating import observe
from ..quantization.calibration import Calibration
from ..quantization.settings import Quantization
from ..quantization.stage import quantize


class Quantizing:
    """The captured model as a precision wants it: ``quantizing(precision)`` is that, and the precision, complete.

    Args:
        low: the lowest precision that will be asked for.
        calibration, select, settings: as :func:`torchtrt_bridge.compile` has them: ``calibration``,
            ``calibration_input`` and ``quantize``.

    Raises:
        InvalidOption: ``low`` is quantized and there is no calibration, or the other way round.
    """

    def __init__(
        self,
        captured: CapturedModel,
        low: str,
        place: Place,
        calibration: Any,
        select: Any,
        settings: Quantization | None,
    ):
        needed = Precision.parse(low).quantized
        if needed != (calibration is not None) or (settings is not None and not needed):
            raise InvalidOption(
                f"low={low!r}: tune_precision() needs calibration= (data, or a Calibration) for 'int8' and 'fp8', which"
                " must know the ranges of the model's activations, and has no use for it, or for quantize=, otherwise."
            )
        if needed and not isinstance(calibration, Calibration):
            calibration = observe(captured, calibration, select, settings.batches if settings is not None else None)
        self._captured, self._place, self._calibration, self._settings = captured, place, calibration, settings

    def __call__(self, precision: Precision) -> tuple[CapturedModel, Precision]:
        captured = self._captured
        precision = precision.bind(captured.program.graph, captured.model)
        if not precision.quantized:
            return captured, precision
        found, precision = quantize(
            captured, precision, self._place, calibration=self._calibration, settings=self._settings
        )
        return dataclasses.replace(found, formed=None, calls={}, routes={}), precision

    def describe(self) -> list[str]:
        """What the numbers depend on, as plain data."""
        return [] if self._calibration is None else [self._calibration.data, repr(self._settings)]
