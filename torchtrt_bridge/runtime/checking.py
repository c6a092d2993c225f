"""What a call's inputs are compared with before they reach an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import DeviceMismatch, InputOutOfProfile, InvalidInput
from ..signature import Signature, TensorSpec


class InputCheck:
    """Compares flat inputs with ``signature``, for a module that runs on ``device``."""

    def __init__(self, signature: Signature, device: torch.device):
        self._signature = signature
        self._specs = signature.inputs
        self._device = device

    def __call__(self, tensors: Sequence[Any]) -> list[torch.Tensor] | None:
        """Returns the results where an input is empty and they are empty too: there is nothing to run, and TensorRT
        has no size 0. Else None.

        Raises:
            InvalidInput, DeviceMismatch, InputOutOfProfile: an input that does not fit, by its name.
        """
        self._check_types(tensors)
        sizes: dict[str, int] = {}
        for spec, tensor in zip(self._specs, tensors):
            shape = tensor.shape
            if tensor.dtype != spec.torch_dtype:
                raise InvalidInput(
                    f"The input {spec.name!r} is {str(tensor.dtype).removeprefix('torch.')}; the module was compiled"
                    f" with {spec!r}. Convert it with .to(torch.{spec.dtype}), or compile again."
                )
            if tensor.device != self._device:
                raise DeviceMismatch(
                    f"The input {spec.name!r} is on {tensor.device}; the module runs on {self._device}."
                    f" Move the input with .to({str(self._device)!r})."
                )
            if len(shape) != len(spec.shape):
                raise InvalidInput(
                    f"The input {spec.name!r} has {len(shape)} dimensions, shape {tuple(shape)}; the module was"
                    f" compiled with {spec!r}."
                )
            for axis, (size, wanted) in enumerate(zip(shape, spec.shape)):
                self._check_size(spec, shape, axis, size, wanted, sizes)
        return self._empty_results(sizes) if any(not t.numel() for t in tensors) else None

    def _check_types(self, tensors: Sequence[Any]) -> None:
        for spec, value in zip(self._specs, tensors):
            if not isinstance(value, torch.Tensor):
                raise InvalidInput(
                    f"The input {spec.name!r} is a {type(value).__name__}; the module was compiled with a tensor"
                    f" ({spec!r})."
                )

    def _check_size(
        self, spec: TensorSpec, shape: torch.Size, axis: int, size: int, wanted: int | str, sizes: dict[str, int]
    ) -> None:
        if isinstance(wanted, int):
            if size != wanted:
                raise InputOutOfProfile(
                    f"The input {spec.name!r} has shape {tuple(shape)}; axis {axis} must be {wanted}. The module was"
                    f" compiled with {spec!r}; make the axis dynamic with dynamic_shapes=... to allow other sizes."
                )
            return
        dim = self._signature.dims[wanted]
        if not dim.min <= size <= dim.max:
            raise InputOutOfProfile(
                f"The input {spec.name!r} has shape {tuple(shape)}; axis {axis} ({wanted}) must be {dim.min} to"
                f" {dim.max}. Compile again with a wider range, or split the input."
            )
        if sizes.setdefault(wanted, size) != size:
            raise InputOutOfProfile(
                f"The input {spec.name!r} has shape {tuple(shape)}; axis {axis} ({wanted}) must equal the other"
                f" inputs' {wanted}, which is {sizes[wanted]}."
            )

    def _empty_results(self, sizes: Mapping[str, int]) -> list[torch.Tensor] | None:
        from ..dynamic import shapes_for

        outputs = self._signature.outputs
        known = [spec for spec in outputs if "?" not in spec.shape]
        results = [
            torch.empty(shape, dtype=spec.torch_dtype, device=self._device)
            for spec, shape in zip(known, shapes_for(known, sizes))
        ]
        if len(known) == len(outputs) and not any(result.numel() for result in results):
            return results
        if self._device.type != "cuda":
            return None
        raise InputOutOfProfile(
            "An input is empty and a result would not be; TensorRT cannot compute that. Give at least one item."
        )
