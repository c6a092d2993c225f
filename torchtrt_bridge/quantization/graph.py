"""Quantization as a captured graph says it: the operators of ``torch.ops.quantized_decomposed``.

torch itself registers them, torchao's PT2E flow writes them, and each has one counterpart in ONNX and in TensorRT.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch.export import ExportedProgram
from torch.fx import Node

_ops = torch.ops.quantized_decomposed
QUANTIZE = frozenset({_ops.quantize_per_tensor.default, _ops.quantize_per_channel.default})
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
