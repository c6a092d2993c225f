"""Reductions.

Without these: torch.onnx's "Required parameter 'dim' is not provided" for amin, amax, aminmax of all; TensorRT's
"Invalid Node" for the mean of a tensor of no dims and for an ArgMax without any in its result, and no IsNaN of
integers (nansum).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten


def aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The smallest and the largest element, of all or along ``dim``."""
    dims = list(range(x.dim())) if dim is None else [dim]
    if not x.dim():
        return x.clone(), x.clone()
    return torch.amin(x, dims, keepdim=keepdim), torch.amax(x, dims, keepdim=keepdim)


def largest(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """``amax`` of some dims, or of all where none are given."""
    for axis in sorted((axis % max(x.dim(), 1) for axis in dim), reverse=True) if dim else ():
        x = torch.max(x, axis, keepdim)[0]
    return x if dim else torch.max(x)


def smallest(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """``amin`` of some dims, or of all where none are given."""
    for axis in sorted((axis % max(x.dim(), 1) for axis in dim), reverse=True) if dim else ():
        x = torch.min(x, axis, keepdim)[0]
    return x if dim else torch.min(x)


def _of_no_dims(node: Node) -> bool:
    return not node.kwargs and not [argument for argument in node.args[1:] if argument != []]


def of_one(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """The sum, mean or product of a single number."""
    return x.clone() if dtype is None or dtype == x.dtype else x.to(dtype)


def _of_one_float(node: Node) -> bool:
    value = node.args[0].meta["val"]  # type: ignore[union-attr]
    return value.dim() == 0 and value.dtype.is_floating_point


def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the largest element of all is, in a result without dims, which TensorRT reaches by a reshape only."""
    return _place(torch.argmax, x, keepdim)


def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the smallest element of all is: see :func:`argmax`."""
    return _place(torch.argmin, x, keepdim)


def _place(function: Callable[..., Tensor], x: Tensor, keepdim: bool) -> Tensor:
    if not x.dim():
        return torch.zeros_like(x, dtype=torch.int64)
    return function(x.reshape(-1, 1), 0).reshape([1] * x.dim() if keepdim else [])


def _of_all(node: Node) -> bool:
    x = node.args[0].meta["val"]  # type: ignore[union-attr]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return dim is None or x.dim() < 2


def nansum(
    x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """The sum of whole numbers, none of which is NaN."""
    return torch.sum(x, list(range(x.dim())) if dim is None else dim, keepdim, dtype=dtype)


def _of_whole_numbers(node: Node) -> bool:
    return not node.args[0].meta["val"].dtype.is_floating_point  # type: ignore[union-attr]


_PLACES = {aten.argmax.default: argmax, aten.argmin.default: argmin}
_OF_ONE = dict.fromkeys((aten.mean.default, aten.sum.default, aten.prod.default), of_one)
_OF_ALL = {aten.amax.default: largest, aten.amin.default: smallest}
DECOMPOSITIONS = {
    aten.aminmax.default: aminmax,
    aten.nansum.default: nansum,
    **_OF_ALL,
    **_OF_ONE,
    **_PLACES,
}
ONLY_WHERE = {
    aten.nansum.default: _of_whole_numbers,
    **dict.fromkeys(_OF_ALL, _of_no_dims),
    **dict.fromkeys(_OF_ONE, _of_one_float),
    **dict.fromkeys(_PLACES, _of_all),
}
