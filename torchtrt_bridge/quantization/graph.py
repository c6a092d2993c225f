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


def is_quantized(program: ExportedProgram) -> bool:
    """Whether some tensor of ``program`` is quantized, its weights among them."""
    return any(is_dequantize(node) for node in program.graph.nodes)


def is_quantize(node: Node) -> bool:
    return node.target in QUANTIZE


def is_dequantize(node: Node) -> bool:
    return node.target in DEQUANTIZE
