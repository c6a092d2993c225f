"""Convolutions whose points move, and the sum of overlapping windows.

Without these: "No importer registered for op: DeformConv", and no importer for Col2Im (fold).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .sampling import bilinear

aten = torch.ops.aten


def col2im(
    x: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """(N, C * kh * kw, L) to (N, C, H, W): each window added where it was, by a transposed convolution whose weights
    are 1 at one place each."""
    batch = x.dim() == 3
    columns = x if batch else x.unsqueeze(0)
    height, width = kernel_size
    windows = [
        (size + 2 * pad - gap * (k - 1) - 1) // step + 1
        for size, pad, gap, k, step in zip(output_size, padding, dilation, kernel_size, stride)
    ]
    rest = [
        size - ((n - 1) * step - 2 * pad + gap * (k - 1) + 1)
        for size, n, step, pad, gap, k in zip(output_size, windows, stride, padding, dilation, kernel_size)
    ]
    places = height * width
    channels = columns.shape[1] // places
    place = torch.arange(places, device=x.device)
    weight = (place.unsqueeze(-1) == place).to(x.dtype).reshape(places, 1, height, width).repeat(channels, 1, 1, 1)
    result = torch.conv_transpose2d(
        columns.reshape(columns.shape[0], -1, *windows),
        weight,
        None,
        list(stride),
        list(padding),
        rest,
        channels,
        list(dilation),
    )
    return result if batch else result.squeeze(0)


def _has_fixed_channels(node: Node) -> bool:
    value = node.args[0].meta["val"]  # type: ignore[union-attr]
    return value.is_floating_point() and isinstance(value.shape[-2], int)


def deform_conv2d(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Tensor:
    """torchvision's deformable convolution: (N, C, H, W) read at the points of a convolution, each moved by its offset
    (dy, dx) and weighted by its mask, then multiplied by the weights (O, C / groups, kh, kw)."""
    batch, channels, height, width = x.shape
    rows, columns = weight.shape[-2:]
    count = rows * columns
    out_h, out_w = offset.shape[-2:]
    moved = offset.reshape(batch, offset_groups, count, 2, out_h, out_w)
    kernel = torch.arange(count, device=x.device)
    kernel_y = torch.div(kernel, columns, rounding_mode="trunc")
    start_y = torch.arange(out_h, device=x.device) * stride_h - pad_h
    start_x = torch.arange(out_w, device=x.device) * stride_w - pad_w
    y = (kernel_y * dilation_h).reshape(-1, 1, 1) + start_y.reshape(1, -1, 1)
    across = ((kernel - kernel_y * columns) * dilation_w).reshape(-1, 1, 1) + start_x.reshape(1, 1, -1)
    found = bilinear(
        x.reshape(batch * offset_groups, channels // offset_groups, height, width),
        (moved.select(3, 0) + y.to(x.dtype)).reshape(batch * offset_groups, -1),
        (moved.select(3, 1) + across.to(x.dtype)).reshape(batch * offset_groups, -1),
    )
    found = found.reshape(batch, offset_groups, channels // offset_groups, count, out_h, out_w)
    if use_mask:
        found = found * mask.reshape(batch, offset_groups, 1, count, out_h, out_w)
    patches = found.reshape(batch, groups, channels // groups * count, out_h * out_w)
    product = torch.matmul(weight.reshape(groups, weight.shape[0] // groups, -1), patches)
    return product.reshape(batch, weight.shape[0], out_h, out_w) + bias.reshape(1, -1, 1, 1)


DECOMPOSITIONS: dict[Any, Any] = {aten.col2im.default: col2im, "torchvision::deform_conv2d": deform_conv2d}
ONLY_WHERE = {aten.col2im.default: _has_fixed_channels}
