"""Reductions. Without this: torch.onnx's "Required parameter 'dim' is not provided" for aminmax of a whole tensor."""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The smallest and the largest element, of all or along ``dim``."""
    dims = list(range(x.dim())) if dim is None else [dim]
    if not x.dim():
        return x.clone(), x.clone()
    return torch.amin(x, dims, keepdim=keepdim), torch.amax(x, dims, keepdim=keepdim)


DECOMPOSITIONS = {aten.aminmax.default: aminmax}
