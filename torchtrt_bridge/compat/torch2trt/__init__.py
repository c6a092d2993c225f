"""The API of NVIDIA's torch2trt on top of torchtrt_bridge, for code written against it.

    from torchtrt_bridge.compat.torch2trt import TRTModule, torch2trt

    model_trt = torch2trt(model, [x], fp16_mode=True)
    torch.save(model_trt.state_dict(), "model_trt.pth")

Nothing of torch2trt itself is needed or imported. docs/torch2trt.md says what differs.
"""

from __future__ import annotations

from typing import Any

from .dataset import Dataset, DatasetRecorder, FolderDataset, ListDataset, TensorBatchDataset
from .dataset_calibrator import DEFAULT_CALIBRATION_ALGORITHM, DatasetCalibrator
from .flatten_module import Flatten, Unflatten
from .flattener import Flattener
from .misc_utils import (
    torch_device_from_trt,
    torch_device_to_trt,
    torch_dtype_from_trt,
    torch_dtype_to_trt,
    trt_int_dtype,
)
from .module_test import MODULE_TESTS, ModuleTest, add_module_test
from .registry import CONVERTERS, IntWrapper, SizeWrapper, get_arg, tensorrt_converter, torch_dim_to_trt_axes
from .torch2trt import torch2trt
from .trt_module import TRTModule
from .version_utils import Version, torch_version, trt_version

__all__ = [
    "CONVERTERS",
    "DEFAULT_CALIBRATION_ALGORITHM",
    "Dataset",
    "DatasetCalibrator",
    "DatasetRecorder",
    "Flatten",
    "Flattener",
    "FolderDataset",
    "IntWrapper",
    "ListDataset",
    "MODULE_TESTS",
    "ModuleTest",
    "SizeWrapper",
    "TRTModule",
    "TensorBatchDataset",
    "Unflatten",
    "Version",
    "add_module_test",
    "get_arg",
    "tensorrt_converter",
    "torch2trt",
    "torch_device_from_trt",
    "torch_device_to_trt",
    "torch_dim_to_trt_axes",
    "torch_dtype_from_trt",
    "torch_dtype_to_trt",
    "torch_version",
    "trt_int_dtype",
    "trt_version",
]


def __getattr__(name: str) -> Any:
    from .registry import of_the_library

    return of_the_library(name)
