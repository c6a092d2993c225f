"""Attention.

Without this: torch.onnx's "only 4D query, key, and value are supported" for other ranks; its "requires q_num_heads >
kv_num_heads" where heads may be shared (enable_gqa) and are not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(..., L, E), (..., S, E), (..., S, V) to (..., L, V), written out; rows that are masked whole are zero."""
    shared = enable_gqa and query.shape[-3] != key.shape[-3]
    if enable_gqa and not shared and query.dim() == 4:
        return aten.scaled_dot_product_attention.default(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale
        )
    if shared:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    if is_causal:
        place = torch.arange(scores.shape[-2], device=query.device).unsqueeze(-1)
        attn_mask = torch.arange(scores.shape[-1], device=query.device) <= place
    if attn_mask is None:
        return torch.matmul(torch.softmax(scores, -1), value)
    if attn_mask.dtype == torch.bool:
        scores = torch.where(attn_mask, scores, float("-inf"))
    else:
        scores = scores + attn_mask
    top = scores.amax(-1, keepdim=True)
    masked = top == float("-inf")
    share = torch.softmax(torch.where(masked, 0.0, scores), -1)
    return torch.matmul(torch.where(masked, 0.0, share), value)


def _not_of_four_dims_or_not_shared(node: Node) -> bool:
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    query, key, value = (n.meta["val"] for n in node.args[:3])  # type: ignore[union-attr]
    alike = bool(node.kwargs.get("enable_gqa")) and query.shape[-3] == key.shape[-3]
    return not dropout and (alike or any(x.dim() != 4 for x in (query, key, value)))


DECOMPOSITIONS = {aten.scaled_dot_product_attention.default: scaled_dot_product_attention}
ONLY_WHERE = {aten.scaled_dot_product_attention.default: _not_of_four_dims_or_not_shared}
