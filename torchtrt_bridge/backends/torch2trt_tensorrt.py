"""The ``tensorrt`` that torch2trt is given: the TensorRT in use, and the names that newer ones no longer have.

TensorRT 11 and TensorRT for RTX lack enumerations and classes that torch2trt, and code written beside it, names when it
is imported. Here they are names and no more: what asks the builder for them (int8, weak typing) is refused by name
before anything is built. ``torch2trt_network`` answers the layers that a network no longer has.
"""

from __future__ import annotations

import enum
import importlib.machinery
import types
from typing import Any

from ..trt.flavor import Flavor
from ..trt.targets import installed

#: RTX's own numbers start again at 1, and torch2trt compares with "10.0" to know which calls there are.
API_VERSION = "10.16"


class CalibrationAlgoType(enum.Enum):
    LEGACY_CALIBRATION = 0
    ENTROPY_CALIBRATION = 1
    ENTROPY_CALIBRATION_2 = 2
    MINMAX_CALIBRATION = 3


class IInt8Calibrator:
    """A base class to derive from; nothing calls what is derived."""


class _Missing(enum.Enum):
    """Flags that the flavour does not have: to be named, not to be used."""

    FP16 = "FP16"
    INT8 = "INT8"
    STRICT_TYPES = "STRICT_TYPES"


class _More:
    """An enumeration of TensorRT's with further members."""

    def __init__(self, real: Any, more: dict[str, Any]):
        self._real = real
        self._more = more

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self._real, name) and name in self._more:
            return self._more[name]
        return getattr(self._real, name)

    def __call__(self, *args: Any) -> Any:
        return self._real(*args)


class StandIn(types.ModuleType):
    """``tensorrt``, by every name that ``flavor`` has and those that older TensorRT had."""

    def __init__(self, flavor: Flavor):
        super().__init__("tensorrt", "The TensorRT in use, for code written for an older one.")
        self.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)  # which importlib.util.find_spec asks for
        trt = flavor.trt
        self._trt = trt
        self.__version__ = flavor.version if flavor.name == "tensorrt" else API_VERSION
        answers = {
            "CalibrationAlgoType": CalibrationAlgoType,
            "IInt8Calibrator": IInt8Calibrator,
            "IInt8LegacyCalibrator": IInt8Calibrator,
            "IInt8EntropyCalibrator": IInt8Calibrator,
            "IInt8EntropyCalibrator2": IInt8Calibrator,
            "IInt8MinMaxCalibrator": IInt8Calibrator,
            "ResizeMode": trt.InterpolationMode,
            "SliceMode": trt.SampleMode,
        }
        for name, answer in answers.items():
            if not hasattr(trt, name):
                setattr(self, name, answer)
        self.BuilderFlag = _More(trt.BuilderFlag, dict(_Missing.__members__))
        creation = trt.NetworkDefinitionCreationFlag
        # an explicit batch is all there is; 1 << 0 is then a flag of no meaning, as in TensorRT 10
        self.NetworkDefinitionCreationFlag = _More(creation, {"EXPLICIT_BATCH": 0})

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._trt, name)
        except AttributeError:
            raise AttributeError(f"{self._trt.__name__} {self._trt.__version__} has no {name!r}") from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._trt)})


_made: StandIn | None = None


def stand_in() -> StandIn:
    """The stand-in of this process.

    Raises:
        BackendUnavailable: no TensorRT is installed.
    """
    global _made
    if _made is None:
        _made = StandIn(installed())
    return _made
