"""A program in operators that torch.onnx and TensorRT's parser take: the built-in converters, and what they leave out.

Each call is decided by itself, and replaced by what its form makes of its own arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ..converters import form_of
from ..inlining import replace
from ..program_graph import rebuild
from .onnx_losses import DECOMPOSITIONS as LOSSES

aten = torch.ops.aten


def exportable(program: ExportedProgram) -> ExportedProgram:
    """``program`` with the built-in converters applied, without operators that TensorRT's parser takes in fp32 and fp16
    only, where they are in bf16, without losses, which it does not take, without squeezes of dimensions that are
    not 1, which torch leaves alone and ONNX refuses, and without grid_sampler, which is cuDNN's for some arguments on a
    GPU, where torch.onnx cannot trace it. Itself where there is nothing to do."""
    if not any(_form_of(node) for node in program.graph.nodes):
        return program
    graph = copy.deepcopy(program.graph)
    waiting: list[tuple[Node, frozenset[Any]]] = [(node, frozenset()) for node in graph.nodes]
    for node, within in waiting:
        form = _form_of(node)
        if form is not None and node.target not in within:  # a form may use its own operator, in another way
            waiting += [(made, within | {node.target}) for made in replace(node, form)]
    return rebuild(program, graph, {})


def _form_of(node: Node) -> Callable[..., Any] | None:
    if node.op != "call_function":
        return None
    if node.target in _NOT_IN_BF16 and node.meta["val"].dtype == torch.bfloat16:
        return _NOT_IN_BF16[node.target]
    if node.target in _SQUEEZES:
        dims = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
        changes = node.meta["val"].ndim == node.args[0].meta["val"].ndim - len(dims)  # type: ignore[union-attr]
        return None if changes else _SQUEEZES[node.target]
    return _ALWAYS.get(node.target) or form_of(node)


def _squeeze(x: torch.Tensor, dims: list[int]) -> torch.Tensor:
    for dim in sorted({dim % max(x.ndim, 1) for dim in dims}, reverse=True):
        if x.ndim and x.shape[dim] == 1:
            x = x.select(dim, 0)
    return x.clone()


def _sample_grid(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
    sample = aten.grid_sampler_2d.default if x.ndim == 4 else aten.grid_sampler_3d.default
    return sample(x, *arguments)  # type: ignore[no-any-return]


_NOT_IN_BF16 = {
    aten.hardswish.default: lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
    aten.hardsigmoid.default: lambda x: torch.clamp(x + 3, 0, 6) / 6,
}
_ALWAYS = {**LOSSES, aten.grid_sampler.default: _sample_grid}
_SQUEEZES = {aten.squeeze.dim: lambda x, dim: _squeeze(x, [dim]), aten.squeeze.dims: _squeeze}
