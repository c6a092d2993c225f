"""Reading images between their pixels: regions of interest.

Without these: TensorRT's "ROIAlign plugin was not found in the plugin registry" (RTX has none).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node


def roi_align(
    x: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """torchvision's: (N, C, H, W) and (K, 5) boxes, the image's number before x0, y0, x1, y1, to (K, C, h, w), each
    element the mean of ``sampling_ratio`` squared points."""
    shift = 0.5 if aligned else 0.0
    left, top, right, bottom = (rois.select(1, i) * spatial_scale - shift for i in (1, 2, 3, 4))
    width, height = right - left, bottom - top
    if not aligned:
        width, height = torch.clamp(width, min=1.0), torch.clamp(height, min=1.0)
    y = _points(top, height, pooled_height, sampling_ratio)
    across = _points(left, width, pooled_width, sampling_ratio)
    y, across = torch.broadcast_tensors(y.unsqueeze(-1), across.unsqueeze(-2))
    rows, columns = x.shape[-2:]
    # outside by more than a pixel is zero; by less, the nearest pixel
    inside = (y >= -1) & (y <= rows) & (across >= -1) & (across <= columns)
    y, across = torch.clamp(y, min=0), torch.clamp(across, min=0)
    y, across = torch.clamp(y, max=rows - 1), torch.clamp(across, max=columns - 1)
    found = _between(x, rois.select(1, 0).to(torch.int64), y.flatten(1), across.flatten(1))
    found = torch.where(inside.flatten(1).unsqueeze(-1), found, 0.0)  # K x points x C
    shape = rois.shape[0], pooled_height, sampling_ratio, pooled_width, sampling_ratio, x.shape[1]
    return found.reshape(shape).mean((2, 4)).permute(0, 3, 1, 2)


def _points(start: Tensor, length: Tensor, bins: int, ratio: int) -> Tensor:
    """(K,) to (K, bins * ratio): the points' coordinates."""
    place = (torch.arange(bins * ratio, device=start.device).to(start.dtype) + 0.5) / ratio
    return start.unsqueeze(-1) + place * (length / bins).unsqueeze(-1)


def _between(x: Tensor, image: Tensor, y: Tensor, across: Tensor) -> Tensor:
    """(K, points, C): images of the numbers (K,) at coordinates inside them."""
    rows, columns = x.shape[-2:]
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    low_y, low_x = torch.floor(y), torch.floor(across)
    total = None
    for upper_y in (0, 1):
        for upper_x in (0, 1):
            at_y, at_x = torch.clamp(low_y + upper_y, max=rows - 1), torch.clamp(low_x + upper_x, max=columns - 1)
            weight_y = y - low_y if upper_y else 1 - (y - low_y)
            weight_x = across - low_x if upper_x else 1 - (across - low_x)
            place = (image.unsqueeze(-1) * rows + at_y.to(torch.int64)) * columns + at_x.to(torch.int64)
            found = pixels.index_select(0, place.reshape(-1)).reshape(*place.shape, -1)
            part = found * (weight_y * weight_x).unsqueeze(-1)
            total = part if total is None else total + part
    assert total is not None
    return total


def bilinear(x: Tensor, y: Tensor, across: Tensor) -> Tensor:
    """(N, C, H, W) at the points (N, P) to (N, C, P); what lies outside is zero."""
    rows, columns = x.shape[-2:]
    pixels = x.flatten(2)
    low_y, low_x = torch.floor(y), torch.floor(across)
    total = None
    for upper_y in (0, 1):
        for upper_x in (0, 1):
            at_y, at_x = low_y + upper_y, low_x + upper_x
            weight_y = y - low_y if upper_y else 1 - (y - low_y)
            weight_x = across - low_x if upper_x else 1 - (across - low_x)
            inside = (at_y >= 0) & (at_y < rows) & (at_x >= 0) & (at_x < columns)
            place = torch.where(inside, at_y * columns + at_x, 0.0).to(torch.int64)
            found = torch.gather(pixels, 2, place.unsqueeze(1).expand(-1, x.shape[1], -1))
            part = found * torch.where(inside, weight_y * weight_x, 0.0).unsqueeze(1)
            total = part if total is None else total + part
    assert total is not None
    return total


def _samples_a_fixed_number(node: Node) -> bool:
    ratio: Any = node.args[5]
    return ratio > 0


DECOMPOSITIONS: dict[Any, Any] = {"torchvision::roi_align": roi_align}
ONLY_WHERE: dict[Any, Any] = {"torchvision::roi_align": _samples_a_fixed_number}
