"""Which operators of a program the ONNX route cannot take, known before it is tried.

The program is spelled out as torch.onnx does it, and each operator of the result is looked up in torch.onnx's registry.
Nothing is exported. (Both are private parts of torch; this is the one file that uses them.)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from ..export_lock import export_lock
from ..forms import call_of
from .base import Place
from .onnx_graph import OPSETS, quiet
from .onnx_operators import exportable

_CHECKS = ("aten._assert", "aten.sym_constrain_range")  # which torch.onnx leaves out
_WIDE = (torch.float64, torch.complex64, torch.complex128, torch.complex32)


def refusals(program: ExportedProgram, place: Place) -> dict[str, str]:
    """For each node of ``program`` that the route cannot take: its name and the reason.

    Its operator, or one that it is made of, has no ONNX form; or TensorRT has no such dtype, or no results whose size
    depends on the data (the RTX flavour).
    """
    found = _without_form(program)
    for node in program.graph.nodes:
        if node.op == "call_function" and node.name not in found and place.needs_plan:
            reason = _not_in_tensorrt(node)
            if reason:
                found[node.name] = f"{operator_name(node.target)} {reason}"
    order = [node.name for node in program.graph.nodes]
    return {name: found[name] for name in order if name in found}


def operator_name(target: Any) -> str:
    """``aten.gelu`` of ``aten.gelu.default``."""
    return str(target).removesuffix(".default")


def _without_form(program: ExportedProgram) -> dict[str, str]:
    names = {node.name: node for node in program.graph.nodes}
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            found[node.name] = f"{node.target} has no ONNX form that TensorRT takes"
    for node in _spelled_out(exportable(program)).graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if str(node.target).startswith(_CHECKS) or call_of(node.target) is not None or _translated(node):
            continue
        source = next((name for name in _origins(node.meta.get("from_node")) if name in names), None)
        if source is None and node.name in names:
            source = node.name
        if source is not None and source not in found:
            own = operator_name(names[source].target)
            part = operator_name(node.target)
            made = "" if part == own else f" is made of {part}, which"
            found[source] = f"{own}{made} has no ONNX form"
    return found


def _origins(sources: Any) -> Iterator[str]:
    """The names of the nodes that a node was made from, the nearest first."""
    for source in reversed(sources or []):
        yield source.name
        yield from _origins(source.from_node)


def _spelled_out(program: ExportedProgram) -> ExportedProgram:
    config: Any = importlib.import_module("torch.fx.experimental._config")
    from torch.onnx._internal.exporter import _decomp

    table = _decomp.create_onnx_friendly_decomposition_table(set(_decomp.get_onnx_implemented_overloads(_registry())))
    known = hasattr(config, "backed_size_oblivious")  # for sizes of 0 and 1, as torch.onnx has it
    oblivious = config.patch(backed_size_oblivious=True) if known else contextlib.nullcontext()
    with export_lock, quiet(), torch.no_grad(), oblivious:
        return program.run_decompositions(table)


def _translated(node: Node) -> bool:
    from torch.onnx._internal.exporter import _dispatching

    return _dispatching.dispatch(node, _registry())[0] is not None


@functools.cache
def _registry() -> Any:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with quiet():
        return ONNXRegistry.from_torchlib(OPSETS[0])


def _not_in_tensorrt(node: Node) -> str:
    value = node.meta.get("val")
    tensors = [t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, torch.Tensor)]
    for tensor in tensors:
        if tensor.dtype in _WIDE:
            return f"computes in {str(tensor.dtype).removeprefix('torch.')}, which TensorRT has not"
    known = {symbol for arg in node.all_input_nodes for symbol in free_unbacked_symbols(arg.meta.get("val"))}
    if any(free_unbacked_symbols(tensor) - known for tensor in tensors) and not _has_data_dependent_sizes():
        return "gives a result whose size depends on the data, for which TensorRT for RTX has no kernel"
    return ""


def _has_data_dependent_sizes() -> bool:
    from ..trt.targets import installed

    return installed().has_data_dependent_sizes
