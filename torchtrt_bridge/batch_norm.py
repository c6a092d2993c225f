"""Batch normalization in its inference form, folded into the layer before it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .fx_nodes import operator_name, retyped
from .program_graph import Constants, constants_of, rebuild

_BATCH_NORMS = frozenset({
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
})  # fmt: skip
_LAYERS = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "linear",
})  # fmt: skip


def fold_batch_norm(program: ExportedProgram) -> ExportedProgram:
    """``program`` with each batch normalization in its inference form folded into the layer before it.

    That layer is a convolution, transposed or not, or a linear layer, whose weight is a parameter of its own and whose
    result nobody else reads. Its new weight and bias are computed in float32 at least, and kept so; in a model of
    fewer bits a cast follows. They are stored under names that exist already: a layer without a bias takes over that of
    the normalization, or its running mean. Returns ``program`` itself where there is nothing to fold.
    """
    graph = copy.deepcopy(program.graph)
    tensors = constants_of(program)
    state: dict[str, torch.Tensor] = {}
    for norm in list(graph.nodes):
        if norm.op == "call_function" and operator_name(norm) in _BATCH_NORMS:
            state.update(_fold(norm, {**tensors, **{n: (tensors[n][0], t) for n, t in state.items()}}))
    return rebuild(program, graph, state) if state else program


def _fold(norm: Node, tensors: Constants) -> dict[str, torch.Tensor]:
    """Fold ``norm`` into the layer before it, in its graph; the new tensors by placeholder, none where it cannot be."""
    call = _call(norm)
    layer = call["input"]
    if call.get("training") or not isinstance(layer, Node) or operator_name(layer) not in _LAYERS:
        return {}
    inner = _call(layer)
    weight, bias = inner["weight"], inner["bias"]
    mean, variance, gamma, beta = (call[name] for name in ("running_mean", "running_var", "weight", "bias"))
    # where the new bias is stored
    home, owner = (bias, layer) if bias is not None else (beta if beta is not None else mean, norm)
    results = _first_results(norm)
    fits = (
        list(layer.users) == [norm]
        and _belongs(weight, layer, tensors)
        and _belongs(home, owner, tensors)
        and None not in (mean, variance)
        and all(n is None or n.name in tensors for n in (mean, variance, gamma, beta))
        # channels must be dimension 1 of the layer's result: no unbatched convolution, no linear layer on sequences
        and layer.meta["val"].ndim == weight.meta["val"].ndim
    )
    if not fits or not results:
        return {}

    def number(node: Node | None, otherwise: float) -> Any:
        return otherwise if node is None else tensors[node.name][1].detach().double()

    scale = number(gamma, 1) * (number(variance, 1) + call["eps"]).rsqrt()
    shift = number(beta, 0) + (number(bias, 0) - number(mean, 0)) * scale
    new = {weight.name: _scaled(tensors[weight.name][1].detach(), scale, layer, inner), home.name: shift}
    for node in dict.fromkeys([*results, norm]):
        node.replace_all_uses_with(layer)
        layer.graph.erase_node(node)
    wide = torch.promote_types(layer.meta["val"].dtype, torch.float32)
    layer.args = (layer.args[0], _held(weight, wide, layer), _held(home, wide, layer), *layer.args[3:])
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name not in ("weight", "bias")}
    return {name: tensor.to(wide) for name, tensor in new.items()}


def _belongs(constant: Any, owner: Node, tensors: Constants) -> bool:
    """Whether ``constant`` is a stored tensor that ``owner`` alone reads, so that its value may change."""
    return isinstance(constant, Node) and constant.name in tensors and list(constant.users) == [owner]


def _call(node: Node) -> dict[str, Any]:
    """Every argument of an operator by name, defaults among them."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    call = {a.name: a.default_value if a.has_default_value() else None for a in schema}
    return {**call, **dict(zip(call, node.args)), **node.kwargs}


def _first_results(norm: Node) -> list[Node]:
    """The nodes that hold the normalized tensor; none where the statistics, too, have a reader."""
    if isinstance(norm.meta["val"], torch.Tensor):
        return [norm]
    readers = list(norm.users)
    first = all(n.target is operator.getitem and n.args[1] == 0 for n in readers)
    return readers if first else []


def _scaled(weight: torch.Tensor, scale: torch.Tensor, layer: Node, call: Mapping[str, Any]) -> torch.Tensor:
    """``weight`` with each output channel multiplied by its ``scale``."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = scale.to(weight.dtype)
    if not (operator_name(layer).startswith("conv_transpose") or call.get("transposed")):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = call["groups"]  # a transposed weight is (in, out / groups, ...)
    grouped = weight.unflatten(0, (groups, -1)) * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return grouped.flatten(0, 1)


def _held(constant: Node, wide: torch.dtype, layer: Node) -> Node:
    """``constant``, held as ``wide`` from now on, as ``layer`` reads it: with a cast where that is in fewer bits."""
    narrow = layer.meta["val"].dtype
    constant.meta = {k: v for k, v in constant.meta.items() if k != "tensor_meta"}
    constant.meta["val"] = retyped(constant.meta["val"], wide)
    if narrow == wide:
        return constant
    with layer.graph.inserting_before(layer):
        cast = layer.graph.call_function(torch.ops.aten._to_copy.default, (constant,), {"dtype": narrow})
    cast.meta = {k: v for k, v in layer.meta.items() if k in ("nn_module_stack", "stack_trace")}
    cast.meta["val"] = retyped(constant.meta["val"], narrow)
    return cast
