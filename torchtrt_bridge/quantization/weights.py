"""Weights as quantized numbers and scales."""

from __future__ import annotations

import torch

from .formats import Format


def quantized_weight(
    weight: torch.Tensor, form: Format, axis: int, group: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(numbers, scales)``: ``numbers`` in the shape of ``weight`` and the dtype of ``form``, ``scales`` in float32.

    int8 has a scale for each index of ``axis`` (shape ``[channels]``), fp8, whose steps grow with the number, one for
    all (shape ``[]``). With ``group``, of a matrix, there is one for each ``group`` numbers of a row (shape
    ``[rows, columns / group]``). A range is all that is there: a weight has no outliers to clip.
    """
    weight = weight.detach().float()
    if group is not None:
        grouped = weight.unflatten(1, (-1, group))
        scales = _scale(grouped.abs().amax(2), form)
        return form.quantized(grouped / scales[..., None]).flatten(1), scales
    if form.dtype.is_floating_point:
        scales = _scale(weight.abs().amax(), form)
        return form.quantized(weight / scales), scales
    others = [dim for dim in range(weight.ndim) if dim != axis]
    scales = _scale(weight.abs().amax(others), form)
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    return form.quantized(weight / scales.reshape(shape)), scales


def _scale(amax: torch.Tensor, form: Format) -> torch.Tensor:
    """1 where all numbers are 0."""
    return torch.where(amax > 0, amax / form.max, 1.0)
