"""Sampling of volumes at given points, resizing with antialiasing.

Without these: "No ONNX function found" for aten.grid_sampler_3d, and TensorRT's "Antialiasing is not supported".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

aten = torch.ops.aten

_BILINEAR, _NEAREST = 0, 1
_ZEROS, _BORDER = 0, 1  # of padding modes; the third reflects


def grid_sampler_3d(x: Tensor, grid: Tensor, interpolation: int, padding: int, align_corners: bool) -> Tensor:
    """(N, C, D, H, W) at the points (N, d, h, w, 3) of coordinates x, y, z from -1 to 1: (N, C, d, h, w)."""
    sizes = x.shape[-1], x.shape[-2], x.shape[-3]
    points = [
        _inside(_to_pixels(grid[..., i], size, align_corners), size, padding, align_corners)
        for i, size in enumerate(sizes)
    ]
    if interpolation == _NEAREST:
        return _take(x, [torch.round(point) for point in points], sizes)
    floors = [torch.floor(point) for point in points]
    rests = [point - floor for point, floor in zip(points, floors)]
    total = None
    for corner in itertools.product((0, 1), repeat=3):
        weight = torch.ones_like(points[0])
        for upper, rest in zip(corner, rests):
            weight = weight * (rest if upper else 1 - rest)
        part = _take(x, [floor + upper for floor, upper in zip(floors, corner)], sizes) * weight.unsqueeze(1)
        total = part if total is None else total + part
    assert total is not None
    return total


def _to_pixels(point: Tensor, size: int, align_corners: bool) -> Tensor:
    return (point + 1) / 2 * (size - 1) if align_corners else ((point + 1) * size - 1) / 2


def _inside(point: Tensor, size: int, padding: int, align_corners: bool) -> Tensor:
    if padding == _ZEROS:
        return point
    if padding != _BORDER:
        low, span = (0.0, size - 1) if align_corners else (-0.5, size)
        if align_corners and isinstance(size, int) and size == 1:
            return torch.zeros_like(point)
        distance = (point - low).abs()
        turns = torch.floor(distance / span)
        rest = distance - turns * span
        odd = turns - 2 * torch.floor(turns / 2) > 0.5
        point = torch.where(odd, span - rest, rest) + low
    return torch.clamp(torch.clamp(point, min=0), max=size - 1)


def _take(x: Tensor, places: list[Tensor], sizes: tuple[int, int, int]) -> Tensor:
    """The values at whole coordinates x, y, z, and zero outside."""
    valid = torch.ones_like(places[0], dtype=torch.bool)
    for place, size in zip(places, sizes):
        valid = valid & (place >= 0) & (place <= size - 1)
    column, row, layer = (torch.where(valid, place, 0.0).to(torch.int64) for place in places)
    flat = (layer * sizes[1] + row) * sizes[0] + column  # (N, d, h, w)
    index = flat.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
    found = torch.gather(x.flatten(2), 2, index).unflatten(2, flat.shape[1:])
    return torch.where(valid.unsqueeze(1), found, 0.0)


def bilinear_antialiased(
    x: Tensor,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Tensor:
    """(N, C, H, W) to (N, C, h, w): a triangle as wide as an output's pixel, one axis after the other."""
    return _antialiased(x, output_size, align_corners, (scales_h, scales_w), _triangle, 1)


def bicubic_antialiased(
    x: Tensor,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Tensor:
    """The same with Keys' cubic, a = -0.5."""
    return _antialiased(x, output_size, align_corners, (scales_h, scales_w), _cubic, 2)


def bilinear_antialiased_vec(
    x: Tensor, output_size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None
) -> Tensor:
    """:func:`bilinear_antialiased` by size or by scale."""
    return bilinear_antialiased(x, *_sized(x, output_size, align_corners, scale_factors))


def bicubic_antialiased_vec(
    x: Tensor, output_size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None
) -> Tensor:
    """:func:`bicubic_antialiased` by size or by scale."""
    return bicubic_antialiased(x, *_sized(x, output_size, align_corners, scale_factors))


def _sized(
    x: Tensor, output_size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> tuple[Sequence[int], bool, float | None, float | None]:
    if output_size is not None:
        return output_size, align_corners, None, None
    assert scales is not None
    return [int(n * scale) for n, scale in zip(x.shape[-2:], scales)], align_corners, scales[0], scales[1]


def _antialiased(
    x: Tensor,
    output_size: Sequence[int],
    align_corners: bool,
    scales: Sequence[float | None],
    kernel: Callable[[Tensor], Tensor],
    radius: int,
) -> Tensor:
    for axis, size, scale in zip((-2, -1), output_size, scales):
        length = x.shape[axis]
        if align_corners:
            step = (length - 1) / (size - 1) if size > 1 else 0.0
        else:
            step = 1 / scale if scale is not None and scale > 0 else length / size
        wide = step if step > 1 else 1.0
        pixel = torch.arange(size, device=x.device, dtype=torch.float32).unsqueeze(-1)
        center = (pixel + 0.5) * step
        element = torch.arange(length, device=x.device, dtype=torch.float32)
        first = torch.clamp(torch.trunc(center - radius * wide + 0.5), min=0)
        last = torch.trunc(center + radius * wide + 0.5)
        weight = kernel((element - center + 0.5) / wide)
        weight = torch.where((element >= first) & (element < last), weight, 0.0)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)  # h x H
        x = torch.matmul(x.movedim(axis, -1), weight.transpose(0, 1)).movedim(-1, axis)
    return x


def _triangle(x: Tensor) -> Tensor:
    return torch.clamp(1 - x.abs(), min=0)


def _cubic(x: Tensor) -> Tensor:
    size = x.abs()
    near = (1.5 * size - 2.5) * size * size + 1
    far = ((-0.5 * size + 2.5) * size - 4) * size + 2
    return torch.where(size < 1, near, torch.where(size < 2, far, 0.0))


DECOMPOSITIONS = {
    aten.grid_sampler_3d.default: grid_sampler_3d,
    aten._upsample_bilinear2d_aa.default: bilinear_antialiased,
    aten._upsample_bilinear2d_aa.vec: bilinear_antialiased_vec,
    aten._upsample_bicubic2d_aa.default: bicubic_antialiased,
    aten._upsample_bicubic2d_aa.vec: bicubic_antialiased_vec,
}
