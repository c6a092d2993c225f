"""Operators that Torch-TensorRT's lowering or converters miss, in forms that they take. Each says what failed without.

Like :mod:`.torch_tensorrt_network`, only the process that holds Torch-TensorRT imports this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch_tensorrt.dynamo._settings import CompilationSettings
from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_ATEN_CONVERTERS

aten = torch.ops.aten

#: Converters that make the same layers for fixed and dynamic shapes, and are registered for fixed ones only.
_ANY_SHAPE = (aten.gather.default, aten.log1p.default)

#: What a tensor of no dimensions is by itself, and TensorRT's reductions refuse.
_REDUCTIONS = (
    *(aten.sum.default, aten.sum.dim_IntList, aten.prod.default, aten.prod.dim_int, aten.cumsum.default),
    *(aten.mean.default, aten.mean.dim, aten.amax.default, aten.amin.default, aten.max.default, aten.min.default),
)

_WIDER = _REDUCTIONS[:5]  # which count integers in 64 bits

Table = dict[Any, Callable[..., Any]]


def amend(table: Table, settings: CompilationSettings, every: bool) -> Table:
    """``table`` of decompositions with ours in it, and, with ``every``, torch's own for each operator that has no
    converter."""
    for target, form in decomposition_table.items() if every else ():
        if target not in DYNAMO_ATEN_CONVERTERS:
            table.setdefault(target, form)
    if not settings.decompose_attention:
        # On the CPU, Torch-TensorRT 2.11 makes a kernel of torch's of it, for which it has no converter.
        table.pop(aten.scaled_dot_product_attention.default, None)
    for pool in (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default):
        table[pool] = _or(table.get(pool), _mean_of_all)
    table[aten.addmm.default] = _or(table.get(aten.addmm.default), _linear)
    table[aten.max.dim] = _extreme(aten.amax.default, aten.argmax.default)
    table[aten.min.dim] = _extreme(aten.amin.default, aten.argmin.default)
    for softmax in (aten._softmax.default, aten._log_softmax.default):
        table[softmax] = _or(table.get(softmax), _of_a_row(softmax))
    for reduction in _REDUCTIONS:
        table[reduction] = _or(table.get(reduction), _nothing_to_reduce(wider=reduction in _WIDER))
    return table


def admit_dynamic_shapes() -> None:
    """Let the converters of :data:`_ANY_SHAPE` take dynamic shapes."""
    for target in _ANY_SHAPE:
        supports = DYNAMO_ATEN_CONVERTERS.get(target, ())
        if isinstance(supports, (list, tuple)) and supports:
            DYNAMO_ATEN_CONVERTERS[target] = [dataclasses.replace(s, supports_dynamic_shapes=True) for s in supports]


def spell_masks_out(program: ExportedProgram) -> None:
    """Give attentions masks that Torch-TensorRT takes for what they are. Changes ``program``. (A form in the table
    would not do: torch decomposes what such a form leaves alone.)

    A causal mask begins at the first query and key in torch, and ends at the last ones in Torch-TensorRT 2.14: where
    they differ in number, it becomes an ordinary mask. And 2.11 takes masks of every dimension only.
    """
    for node in program.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        query, mask = node.args[0], _argument(node, 3, "attn_mask")
        with program.graph.inserting_before(node):
            if mask is None and causal_of_two_lengths(node) and all(isinstance(n, int) for n in _lengths(node)):
                mask = _lower_triangle(program.graph, node)
            if not isinstance(mask, Node):
                continue
            for _ in range(query.meta["val"].ndim - mask.meta["val"].ndim):
                mask = _call(program.graph, node, mask.meta["val"].unsqueeze(0), aten.unsqueeze.default, mask, 0)
        dropout = _argument(node, 4, "dropout_p")
        rest = {name: value for name, value in node.kwargs.items() if name in ("scale", "enable_gqa")}
        node.args, node.kwargs = (*node.args[:3], mask, dropout or 0.0, False), rest


def causal_of_two_lengths(node: Node) -> bool:
    """Whether ``node`` is an attention with a causal mask whose queries and keys may differ in number."""
    if node.target is not aten.scaled_dot_product_attention.default or not _argument(node, 5, "is_causal"):
        return False
    queries, keys = _lengths(node)
    return str(queries) != str(keys)


def _lengths(node: Node) -> tuple[Any, Any]:
    return node.args[0].meta["val"].shape[-2], node.args[1].meta["val"].shape[-2]  # type: ignore[union-attr]


def _argument(node: Node, index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _lower_triangle(graph: Graph, node: Node) -> Node:
    with node.meta["val"].fake_mode:
        value = torch.ones(*_lengths(node), dtype=torch.bool)
    options = {"dtype": torch.bool, "device": torch.device("cpu")}
    ones = _call(graph, node, value, aten.ones.default, list(_lengths(node)), **options)
    return _call(graph, node, value, aten.tril.default, ones)


def _call(graph: Graph, near: Node, value: Any, target: Any, *args: Any, **kwargs: Any) -> Node:
    made = graph.call_function(target, args, kwargs)
    made.meta = {**near.meta, "val": value}
    return made


def _or(usual: Callable[..., Any] | None, special: Callable[..., Any]) -> Callable[..., Any]:
    """``special`` where it has an answer, else the decomposition that there was, if any."""

    def form(*args: Any, **kwargs: Any) -> Any:
        result = special(*args, **kwargs)
        return usual(*args, **kwargs) if result is NotImplemented and usual is not None else result

    return form


def _mean_of_all(x: torch.Tensor, output_size: Any) -> Any:
    """Pooling to one value. torch's own form restrides the result in the memory format of ``x`` (``as_strided``)."""
    sizes = output_size if isinstance(output_size, (list, tuple)) else (output_size,)
    if any(size != 1 for size in sizes):
        return NotImplemented
    return x.mean([-1 - i for i in range(len(sizes))], keepdim=True)


def _linear(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    """GPT-2's Conv1D. The converter's own sum, before an attention, failed inside TensorRT for RTX 1.6."""
    if bias.ndim != 1 or (beta, alpha) != (1, 1):
        return NotImplemented
    return aten.linear.default(x, weight.t(), bias)


def _extreme(value: Any, index: Any) -> Callable[..., Any]:
    """The converters of ``max`` and ``min`` over a dimension give no index."""

    def form(x: torch.Tensor, dim: int, keepdim: bool = False) -> Any:
        return value(x, [dim], keepdim), index(x, dim, keepdim)

    return form


def _of_a_row(softmax: Any) -> Callable[..., Any]:
    """TensorRT's softmax needs two dimensions."""

    def form(x: torch.Tensor, dim: int, half_to_float: bool) -> Any:
        return softmax(x.unsqueeze(0), 1, half_to_float).squeeze(0) if x.ndim == 1 else NotImplemented

    return form


def _nothing_to_reduce(wider: bool) -> Callable[..., Any]:
    def form(x: torch.Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        if x.ndim:
            return NotImplemented
        integer = not (x.is_floating_point() or x.is_complex())
        return x.to(dtype or (torch.int64 if wider and integer else x.dtype))

    return form
