"""The bytes of a tensor, as they are hashed and written."""

from __future__ import annotations

import torch

from ..errors import ConversionFailed


def contents(tensor: torch.Tensor) -> memoryview:
    """The elements of ``tensor`` in row-major order, as bytes; not copied where it is on the CPU and contiguous.

    Raises:
        ConversionFailed: a sparse, quantized or meta tensor, which has no such bytes.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ConversionFailed(
            f"A tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device} cannot be saved; make it dense first."
        )
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
