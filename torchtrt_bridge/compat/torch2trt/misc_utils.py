"""Dtypes and devices of torch as TensorRT's, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_NAMES = {
    torch.bool: "BOOL",
    torch.int8: "INT8",
    torch.uint8: "UINT8",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.float32: "FLOAT",
}


def _trt() -> Any:
    from ...trt.targets import installed

    return installed().trt


def torch_dtype_to_trt(dtype: torch.dtype) -> Any:
    """Raises TypeError for a dtype that TensorRT does not have."""
    if dtype not in _NAMES:
        raise TypeError(f"{dtype} is not supported by tensorrt")
    return getattr(_trt().DataType, _NAMES[dtype])


def torch_dtype_from_trt(dtype: Any) -> torch.dtype:
    """Raises TypeError for a dtype that torch does not have."""
    for known, name in _NAMES.items():
        if dtype.name == name:
            return known
    raise TypeError(f"{dtype} is not supported by torch")


def torch_device_to_trt(device: torch.device) -> Any:
    """Raises TypeError for a device that is neither a GPU nor the CPU."""
    if device.type not in ("cuda", "cpu"):
        raise TypeError(f"{device} is not supported by tensorrt")
    location = _trt().TensorLocation
    return location.DEVICE if device.type == "cuda" else location.HOST


def torch_device_from_trt(device: Any) -> torch.device:
    return torch.device("cuda" if device.name == "DEVICE" else "cpu")


def trt_int_dtype() -> Any:
    """numpy's dtype of TensorRT's sizes and indices."""
    return np.int64
