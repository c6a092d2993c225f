"""Quantization as a captured graph says it: the operators of ``torch.ops.quantized_decomposed``, and one of ours.

torch itself registers them, torchao's PT2E flow writes them, and each has one counterpart in ONNX and in TensorRT. But
torch's ``quantize_per_tensor`` rounds to whole numbers on the way to float8 too, where ONNX and TensorRT do not:
:func:`quantize_float8` is in its place there.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch.export import ExportedProgram
from torch.fx import Node

_ops = torch.ops.quantized_decomposed
FLOAT8_MAX = 448


@torch.library.custom_op("torchtrt_bridge_quantization::quantize_float8", mutates_args=())
def quantize_float8(x: torch.Tensor, scale: float) -> torch.Tensor:
    """``x / scale`` as float8 (E4M3), saturated."""
    return (x.float() / scale).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn)


@quantize_float8.register_fake
def _(x: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.empty_like(x, dtype=torch.float8_e4m3fn)


FLOAT8 = torch.ops.torchtrt_bridge_quantization.quantize_float8.default
QUANTIZE = frozenset({_ops.quantize_per_tensor.default, _ops.quantize_per_channel.default, FLOAT8})
DEQUANTIZE = frozenset({
    _ops.dequantize_per_tensor.default, _ops.dequantize_per_channel.default, _ops.dequantize_per_channel_group.default,
})  # fmt: skip


def is_quantized(program: ExportedProgram, dtype: torch.dtype | None = None) -> bool:
    """Whether some tensor of ``program`` is quantized (to ``dtype``), its weights among them."""
    return any(is_dequantize(node) and dtype in (None, *node.args) for node in program.graph.nodes)


def set_result_dtype(node: Node, dtype: torch.dtype) -> None:
    """Let a dequantization give ``dtype``; what its meta says is the caller's matter."""
    if node.target is _ops.dequantize_per_channel_group.default:
        node.args = (*node.args[:7], dtype)
    else:
        node.kwargs = {**node.kwargs, "out_dtype": dtype}


def is_quantize(node: Node) -> bool:
    return node.target in QUANTIZE


def is_dequantize(node: Node) -> bool:
    return node.target in DEQUANTIZE
