"""Whether a GPU and the TensorRT in use have a precision at all, known before anything is built."""

from __future__ import annotations

import torch

from .backends.base import Place
from .errors import BackendUnavailable, InvalidOption
from .precision import Precision

_SINCE = {"bf16": (8, 0), "fp8": (8, 9)}
"""The compute capability from which tensor cores have it
(https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html)."""

_TYPES = {"bf16": "BF16", "fp8": "FP8"}  # those that not every TensorRT has
_NEAREST = {"bf16": "fp16", "fp8": "int8' or 'fp16"}


def check_support(precision: Precision, place: Place) -> tuple[str, ...]:
    """Sentences for the report.

    Raises:
        InvalidOption: the TensorRT in use, or the GPU that the result is for, lacks a precision that is asked for.
    """
    wanted = [name for name in precision.names if name in _SINCE]
    if not place.needs_plan or not wanted:
        return ()
    from .trt.targets import installed

    try:
        bound = installed()
    except BackendUnavailable:
        return ()  # which each route has to say
    capability, notes = _capability(place), []
    for name in wanted:
        nearest = f"The nearest is '{_NEAREST[name]}'."
        if not hasattr(bound.trt.DataType, _TYPES[name]):
            raise InvalidOption(f"precision={name!r}: {bound.name} {bound.version} has no such type. {nearest}")
        since = "{}.{}".format(*_SINCE[name])
        if capability is None:
            if _SINCE[name] > (8, 0):
                notes.append(f"{name} runs on GPUs of compute capability {since} or later, whatever the plan runs on")
        elif capability < _SINCE[name]:
            where = place.target or torch.cuda.get_device_name(place.device)
            raise InvalidOption(
                f"precision={name!r} needs a GPU of compute capability {since} or later, and this is for {where}"
                f" ({capability[0]}.{capability[1]}). {nearest}"
            )
    return tuple(notes)


def no_fp8_convolutions() -> str:
    """Why convolutions are not to be in fp8 in plans of the TensorRT here; empty where they may, or there is none."""
    from .trt.targets import installed

    try:
        bound = installed()
    except BackendUnavailable:
        return ""  # which each route has to say
    lost = "leaves out the scales of fp8 convolutions, whose results are a thousand times too large then"
    return f"TensorRT ({bound.name} {bound.version}) {lost}" if bound.loses_fp8_scales else ""


def _capability(place: Place) -> tuple[int, int] | None:
    """That of the GPU which the result is for; None for a portable plan, and for a target of another name."""
    if place.target is None:
        return torch.cuda.get_device_capability(place.device)
    number = place.target.removeprefix("sm")
    return (int(number[:-1]), int(number[-1])) if number.isdecimal() and len(number) > 1 else None
