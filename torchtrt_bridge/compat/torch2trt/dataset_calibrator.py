"""The calibrator for int8: what ``torchtrt_bridge.compile(..., "int8", calibration=DatasetCalibrator(...))`` takes."""

from __future__ import annotations

import enum
import os
from typing import Any

from .dataset import Dataset
from .flattener import Flattener

__all__ = ["DEFAULT_CALIBRATION_ALGORITHM", "DatasetCalibrator"]


class CalibrationAlgorithm(enum.Enum):
    """TensorRT's ``CalibrationAlgoType``, which TensorRT 11 and RTX no longer have."""

    LEGACY_CALIBRATION = 0
    ENTROPY_CALIBRATION = 1
    ENTROPY_CALIBRATION_2 = 2
    MINMAX_CALIBRATION = 3


DEFAULT_CALIBRATION_ALGORITHM = CalibrationAlgorithm.ENTROPY_CALIBRATION_2


class DatasetCalibrator:
    """Gives the items of ``dataset``, one at a time, as the addresses of their tensors."""

    def __init__(
        self,
        dataset: Dataset,
        algorithm: Any = DEFAULT_CALIBRATION_ALGORITHM,
        cache_file: str | os.PathLike[str] | None = None,
        flattener: Flattener | None = None,
    ):
        self.dataset = dataset
        self.algorithm = algorithm
        self.cache_file = cache_file
        self.flattener = flattener or dataset.flattener
        self.count = 0
        self._held: list[Any] = []

    def get_batch(self, *args: Any, **kwargs: Any) -> list[int]:
        if self.count >= len(self.dataset):
            return []
        self._held = self.flattener.flatten(self.dataset[self.count])  # alive while their addresses are in use
        self.count += 1
        return [int(tensor.data_ptr()) for tensor in self._held]

    def get_algorithm(self) -> Any:
        return self.algorithm

    def get_batch_size(self) -> int:
        return 1

    def read_calibration_cache(self, *args: Any, **kwargs: Any) -> bytes | None:
        if self.cache_file is None or not os.path.exists(self.cache_file):
            return None
        with open(self.cache_file, "rb") as file:
            return file.read()

    def write_calibration_cache(self, cache: bytes, *args: Any, **kwargs: Any) -> None:
        if self.cache_file is not None:
            with open(self.cache_file, "wb") as file:
                file.write(cache)
