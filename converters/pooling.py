"""Pooling: rounding up, to any size, and where the maxima are.

Without these: wrong numbers of average pools with ceil_mode or a divisor of their own; "No ONNX function found" for
aten._adaptive_avg_pool3d and for adaptive_max_pool; TensorRT's "doesn't support more than 1 outputs for
MaxPool nodes".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten

_FAR = 2**31 - 1
"""Beyond every place."""


def adaptive_avg_pool(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Means over windows that begin at floor(i * n / m) and end at ceil((i + 1) * n / m), one axis after the other."""
    for axis, size in zip(range(-len(output_size), 0), output_size):
        inside = _windows(x, axis, size).to(x.dtype)
        mean = inside / inside.sum(-1, keepdim=True)  # m x n
        x = torch.matmul(x.movedim(axis, -1), mean.transpose(0, 1)).movedim(-1, axis)
    return x


def avg_pool1d(x: Tensor, kernel_size: Sequence[int], *settings: Any) -> Tensor:
    return _avg_pool(x, 1, kernel_size, *settings)


def avg_pool2d(x: Tensor, kernel_size: Sequence[int], *settings: Any) -> Tensor:
    return _avg_pool(x, 2, kernel_size, *settings)


def avg_pool3d(x: Tensor, kernel_size: Sequence[int], *settings: Any) -> Tensor:
    return _avg_pool(x, 3, kernel_size, *settings)


def _avg_pool(
    x: Tensor,
    count: int,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Sums over windows, one axis after the other, by the sizes of the windows (or by a number that is given)."""
    kernel, steps, pads = (_each(setting, count) for setting in (kernel_size, stride or kernel_size, padding))
    for axis, k, step, pad in zip(range(-count, 0), kernel, steps, pads):
        length = x.shape[axis]
        start = _starts(x, length, k, step, pad, ceil_mode)
        element = torch.arange(length, device=x.device)
        inside = ((element >= start) & (element < start + k)).to(x.dtype)  # windows x elements
        if divisor_override is None:
            first, last = start, torch.clamp(start + k, max=length + pad)
            if not count_include_pad:
                first, last = torch.clamp(start, min=0), torch.clamp(start + k, max=length)
            inside = inside / (last - first).to(x.dtype)
        x = torch.matmul(x.movedim(axis, -1), inside.transpose(0, 1)).movedim(-1, axis)
    return x if divisor_override is None else x / divisor_override


def _rounds_up_or_divides(node: Node) -> bool:
    """What TensorRT gets wrong, with no error: ceil_mode, and a divisor of one's own."""
    given = dict(zip(("x", "kernel", "stride", "padding", "ceil", "count", "divisor"), node.args))
    value = node.args[0].meta["val"]  # type: ignore[union-attr]
    return bool(given.get("ceil") or given.get("divisor")) and value.is_floating_point()


def _each(setting: Sequence[int], count: int) -> list[int]:
    return list(setting) * count if len(setting) == 1 else list(setting)


def _starts(x: Tensor, length: int, reach: int, step: int, pad: int, ceil_mode: bool) -> Tensor:
    """Where the windows begin, in a column; with ``ceil_mode`` the last in the input or the padding before it."""
    size = (length + 2 * pad - reach + (step - 1 if ceil_mode else 0)) // step + 1
    if ceil_mode:
        size = size - (1 if (size - 1) * step >= length + pad else 0)
    return torch.arange(size, device=x.device).unsqueeze(-1) * step - pad


def adaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Maxima over the same windows, and where in the input's last axes they are, counted through."""
    place = _places(x, len(output_size))
    for axis, size in zip(range(-1, -len(output_size) - 1, -1), reversed(output_size)):
        inside = _windows(x, axis, size)  # m x n
        values = torch.where(inside, x.movedim(axis, -1).unsqueeze(-2), float("-inf"))
        places = place.movedim(axis, -1).unsqueeze(-2).expand(values.shape)
        x, place = _largest(values, places, axis)
    return x, place


def max_pool1d_with_indices(x: Tensor, kernel_size: Sequence[int], *settings: Any) -> tuple[Tensor, Tensor]:
    return max_pool_with_indices(x, 1, kernel_size, *settings)


def max_pool2d_with_indices(x: Tensor, kernel_size: Sequence[int], *settings: Any) -> tuple[Tensor, Tensor]:
    return max_pool_with_indices(x, 2, kernel_size, *settings)


def max_pool3d_with_indices(x: Tensor, kernel_size: Sequence[int], *settings: Any) -> tuple[Tensor, Tensor]:
    return max_pool_with_indices(x, 3, kernel_size, *settings)


def max_pool_with_indices(
    x: Tensor,
    count: int,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Maxima over windows of a fixed size of the last ``count`` axes, and where they are; the first of several."""
    kernel, steps, pads, gaps = (
        _each(setting, count) for setting in (kernel_size, stride or kernel_size, padding, dilation)
    )
    place = _places(x, count)
    for axis, k, step, pad, gap in reversed(list(zip(range(-count, 0), kernel, steps, pads, gaps))):
        length = x.shape[axis]
        start = _starts(x, length, gap * (k - 1) + 1, step, pad, ceil_mode)
        size = start.shape[0]
        element = start + torch.arange(k, device=x.device) * gap  # windows x elements
        inside = (element >= 0) & (element < length)
        element = torch.clamp(torch.clamp(element, min=0), max=length - 1).reshape(-1)
        found = x.movedim(axis, -1).index_select(-1, element).unflatten(-1, (size, k))
        places = place.movedim(axis, -1).index_select(-1, element).unflatten(-1, (size, k))
        lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, place = _largest(torch.where(inside, found, lowest), places, axis)
    return x, place


def _places(x: Tensor, count: int) -> Tensor:
    """Where each element is in the last ``count`` axes, counted through."""
    shape = x.shape[-count:]
    return torch.arange(_product(shape), device=x.device).reshape(shape).expand(x.shape)


def _largest(values: Tensor, places: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The maxima along the last axis and their places, the first of several, with the axis before it put back to
    ``axis``."""
    best = values.amax(-1, keepdim=True)
    found = values == best  # TensorRT's argmax takes any of several
    if values.is_floating_point():
        found = found | torch.isnan(values)
    place = torch.where(found, places, _FAR).amin(-1)
    return best.squeeze(-1).movedim(-1, axis), place.movedim(-1, axis)


def _windows(x: Tensor, axis: int, size: int) -> Tensor:
    """m x n: whether an element belongs to a window."""
    length = x.shape[axis]
    window = torch.arange(size, device=x.device).unsqueeze(-1)
    element = torch.arange(length, device=x.device)
    first = torch.div(window * length, size, rounding_mode="floor")
    last = torch.div(window * length + (length + size - 1), size, rounding_mode="floor")
    return (element >= first) & (element < last)


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product = product * size
    return product


DECOMPOSITIONS = {
    aten.avg_pool1d.default: avg_pool1d,
    aten.avg_pool2d.default: avg_pool2d,
    aten.avg_pool3d.default: avg_pool3d,
    aten._adaptive_avg_pool3d.default: adaptive_avg_pool,
    aten.adaptive_avg_pool3d.default: adaptive_avg_pool,
    aten.max_pool1d_with_indices.default: max_pool1d_with_indices,
    aten.max_pool2d_with_indices.default: max_pool2d_with_indices,
    aten.max_pool3d_with_indices.default: max_pool3d_with_indices,
    aten.adaptive_max_pool1d.default: adaptive_max_pool,
    aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.adaptive_max_pool3d.default: adaptive_max_pool,
}
ONLY_WHERE = {
    aten.avg_pool1d.default: _rounds_up_or_divides,
    aten.avg_pool2d.default: _rounds_up_or_divides,
    aten.avg_pool3d.default: _rounds_up_or_divides,
}
