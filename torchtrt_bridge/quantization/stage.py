"""The stage between capture and the routes: a captured model in, one whose program is quantized out."""

from __future__ import annotations

from typing import Any

from ..backends.base import Place
from ..capture import CapturedModel
from ..errors import InvalidOption
from ..precision import Precision
from .graph import is_quantized
from .settings import Quantization


def quantize(
    captured: CapturedModel, precision: Precision, place: Place, calibration: Any, settings: Quantization | None
) -> tuple[CapturedModel, Precision]:
    """``captured`` as ``precision`` needs it: with Q/DQ in its program, or as it is, where it holds them already; and
    the precision with what is not quantized decided.

    Raises:
        InvalidOption: int8 or fp8 without data to calibrate with; settings where nothing is quantized.
    """
    if settings is not None and not isinstance(settings, Quantization):
        raise InvalidOption(f"quantize={settings!r}: give torchtrt_bridge.Quantization(...).")
    precision = precision.at(place.needs_plan, settings.other if settings is not None else None)
    if not precision.quantized:
        for name, value in (("calibration", calibration), ("quantize", settings)):
            if value is not None:
                raise InvalidOption(f"{name}= is for precision='int8' and 'fp8', and this is {precision.name!r}.")
    if not precision.quantized or is_quantized(captured.program):
        return captured, precision
    raise InvalidOption(
        f"precision={precision.name!r} needs the ranges of the model's activations, which only data shows. Give"
        " calibration=, a DataLoader or another iterable of what the model is called with (some hundred examples), or a"
        " Calibration that was saved. A model that is quantized already needs none."
    )
