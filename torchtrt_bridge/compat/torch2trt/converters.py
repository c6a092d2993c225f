"""Where torch2trt keeps its converters; here, those of the user's own."""

from __future__ import annotations

from .registry import CONVERTERS, get_arg, tensorrt_converter, torch_dim_resolve_negative, torch_dim_to_trt_axes

__all__ = ["CONVERTERS", "get_arg", "tensorrt_converter", "torch_dim_resolve_negative", "torch_dim_to_trt_axes"]
