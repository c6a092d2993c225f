"""What was calibrated for TensorRT before: its calibration tables, and calibrators in the style of ``IInt8Calibrator``.

A table is what ``trtexec --calib`` reads and a calibrator's ``write_calibration_cache`` wrote: after a first line with
TensorRT's version and the algorithm, ``name: 3c010a14`` for each tensor, a float32 scale (``amax / 127``) in
hexadecimal. The names are those of the network that it was made for; an ONNX model of ours has its tensors'
(``linear_3``).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..capture import CapturedModel
from ..errors import InvalidFile, InvalidInput
from ..signature import TensorSpec

_LEVELS = 127


def read_table(content: bytes | str) -> dict[str, float]:
    """The range (``amax``) of each tensor that a table names.

    Raises:
        InvalidFile: it is no such table.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        first, *lines = text.strip().splitlines()
        if not first.startswith("TRT-"):
            raise ValueError(f"the first line is {first[:40]!r}, and not one such as 'TRT-8601-EntropyCalibration2'")
        ranges = {}
        for line in lines:
            name, _, number = line.rpartition(":")
            (scale,) = struct.unpack("!f", bytes.fromhex(number.strip().zfill(8)))
            ranges[name.strip()] = abs(scale) * _LEVELS
    except (ValueError, struct.error) as error:  # a UnicodeDecodeError is a ValueError
        raise InvalidFile(f"This is no calibration table of TensorRT's: {error}.") from None
    return ranges


def write_table(ranges: Mapping[str, float]) -> bytes:
    """The table of those ranges (``amax``), as :func:`read_table` and ``trtexec`` read it."""
    lines = [f"{name}: {struct.pack('!f', amax / _LEVELS).hex()}" for name, amax in ranges.items()]
    return "\n".join(["TRT-100000-EntropyCalibration2", *lines, ""]).encode()


def is_calibrator(value: Any) -> bool:
    """Whether ``value`` has the methods of an ``IInt8Calibrator``."""
    return callable(getattr(value, "get_batch", None)) and callable(getattr(value, "read_calibration_cache", None))


def batches_of(calibrator: Any, captured: CapturedModel) -> Iterator[tuple[torch.Tensor, ...]]:
    """What a calibrator gives, batch after batch: the arguments of the model, from the addresses of its inputs.

    The addresses are on the model's device. Each holds as many examples as ``get_batch_size()`` says.

    Raises:
        InvalidInput: it gives another number of addresses than the model has inputs.
    """
    specs = captured.signature.inputs
    names = [spec.name for spec in specs]
    while given := calibrator.get_batch(names):
        if len(given) != len(specs):
            raise InvalidInput(f"The calibrator gives {len(given)} inputs, and the model has {', '.join(names)}.")
        shapes = [_shape(spec, example, calibrator.get_batch_size()) for spec, example in zip(specs, captured.inputs)]
        yield tuple(
            _at(int(address), shape, spec, captured.device) for address, shape, spec in zip(given, shapes, specs)
        )


def _shape(spec: TensorSpec, example: torch.Tensor, batch: int) -> tuple[int, ...]:
    first = () if not spec.shape else (spec.shape[0] if isinstance(spec.shape[0], int) else batch,)
    return (*first, *example.shape[1:])


def _at(address: int, shape: tuple[int, ...], spec: TensorSpec, device: torch.device) -> torch.Tensor:
    """A copy of the tensor that lies at ``address``."""
    count = torch.Size(shape).numel() * spec.torch_dtype.itemsize
    if device.type == "cuda":
        found = torch.as_tensor(_OnGpu(address, count), device=device)
    else:
        found = torch.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype=torch.uint8)
    return found.clone().view(spec.torch_dtype).reshape(shape)


class _OnGpu:
    """Bytes on a GPU, as the CUDA array interface describes them."""

    def __init__(self, address: int, count: int):
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": "|u1", "data": (address, False), "version": 3,
        }  # fmt: skip
