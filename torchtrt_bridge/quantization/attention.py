"""Attentions spelled out as the two matrix products and the softmax that they are, so that each can be quantized.

The new nodes have names of their own and those around them keep theirs, by which a calibration knows them.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ..program_graph import rebuild

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default


def spell_attention_out(program: ExportedProgram) -> ExportedProgram:
    """``program`` with its attentions as matrix products; those with dropout or grouped queries stay as they are."""
    graph = copy.deepcopy(program.graph)
    found = [node for node in graph.find_nodes(op="call_function", target=_ATTENTION) if _is_plain(node)]
    for node in found:
        _spell_out(node)
    return rebuild(program, graph, {}) if found else program


def _is_plain(node: Node) -> bool:
    return not _argument(node, 4, "dropout_p") and not _argument(node, 6, "enable_gqa")


def _spell_out(node: Node) -> None:
    query, key, value = node.args[:3]
    assert isinstance(query, Node) and isinstance(key, Node) and isinstance(value, Node)
    mask, causal, scale = (
        _argument(node, index, name) for index, name in ((3, "attn_mask"), (5, "is_causal"), (None, "scale"))
    )
    scale = 1 / math.sqrt(query.meta["val"].shape[-1]) if scale is None else scale
    write = _Writer(node)
    transposed = write("keys", aten.transpose.int, key, -2, -1)
    scores = write("scores", aten.matmul.default, query, transposed)
    scores = write("scaled", aten.mul.Tensor, scores, scale)
    if causal:
        ones = write("ones", aten.ones_like.default, scores, dtype=torch.bool)
        mask = write("causal", aten.tril.default, ones)
    if mask is not None and mask.meta["val"].dtype == torch.bool:
        hidden = write("hidden", aten.logical_not.default, mask)
        scores = write("masked", aten.masked_fill.Scalar, scores, hidden, float("-inf"))
    elif mask is not None:
        scores = write("masked", aten.add.Tensor, scores, mask)
    weights = write("weights", aten.softmax.int, scores, -1)
    result = write("product", aten.matmul.default, weights, value)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


class _Writer:
    """Writes operators before ``near``, in the same module of the user's, with names that begin with its own."""

    def __init__(self, near: Node):
        self._near = near

    def __call__(self, name: str, target: Any, *args: Any, **kwargs: Any) -> Node:
        near = self._near
        with near.graph.inserting_before(near):
            node = near.graph.create_node("call_function", target, args, kwargs, name=f"{near.name}_{name}")
        node.meta = {key: near.meta[key] for key in ("nn_module_stack", "stack_trace") if key in near.meta}
        mode = near.meta["val"].fake_mode
        with mode:
            values = torch.fx.map_arg((args, kwargs), lambda n: n.meta["val"])
            node.meta["val"] = target(*values[0], **values[1])
        return node


def _argument(node: Node, index: int | None, name: str) -> Any:
    return node.args[index] if index is not None and len(node.args) > index else node.kwargs.get(name)
