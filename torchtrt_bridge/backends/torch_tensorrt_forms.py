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
from torch.fx import Node
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


def give_masks_every_dimension(program: ExportedProgram) -> None:
    """An attention's mask of as many dimensions as its query: Torch-TensorRT 2.11 does not broadcast it. Changes
    ``program``. (No form in the table: torch would decompose what such a form leaves alone.)"""
    for node in program.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if not isinstance(mask, Node):
            continue
        wide = mask
        for _ in range(node.args[0].meta["val"].ndim - mask.meta["val"].ndim):
            with program.graph.inserting_before(node):
                widened = program.graph.call_function(aten.unsqueeze.default, (wide, 0))
            widened.meta = {**node.meta, "val": wide.meta["val"].unsqueeze(0)}
            wide = widened
        if wide is not mask:
            node.args = tuple(wide if argument is mask else argument for argument in node.args)
            node.kwargs = {name: wide if value is mask else value for name, value in node.kwargs.items()}


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
