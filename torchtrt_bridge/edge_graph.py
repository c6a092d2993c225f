"""A program whose edges stand apart: casts of inputs first, casts and cuts of results last, and in between nothing that
an engine cannot take or give."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from .backends.interface import PLAN_DTYPES
from .edge_rows import NotByRow, pad
from .partition import is_number, reads_data, tensors_of
from .program_graph import rebuild

aten = torch.ops.aten

_WIDER = {torch.int16: torch.int32, torch.uint16: torch.int32, torch.uint32: torch.int64}
"""What an engine takes in place of a dtype, all of whose values it has."""


def explicit(program: ExportedProgram) -> tuple[ExportedProgram, frozenset[str]] | None:
    """``program`` with its edges apart, and the names of the nodes that make them up. None where no edge is in the way,
    or where more than the edges is."""
    inputs, results = _ends(program.graph, program)
    home = {node.meta["val"].device.type for node in inputs}
    if not any(_foreign(n, home) for n in inputs + results) and not any(map(_has_unknown_size, results)):
        return None
    graph = copy.deepcopy(program.graph)
    steps: set[str] = set()
    try:
        for node in _ends(graph, program)[0]:
            if _foreign(node, home):
                steps.update(_cast_input(node))
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target is not operator.getitem and reads_data(node):
                steps.update(pad(node))
        for node in _ends(graph, program)[1]:
            if _foreign(node, home) and node.name not in steps:
                steps.add(_last(node, home))
    except (_InTheMiddle, NotByRow):
        return None
    return rebuild(program, graph, {}), frozenset(steps)


class _InTheMiddle(Exception):
    """A tensor that no engine has is more than converted."""


def _ends(graph: Graph, program: ExportedProgram) -> tuple[list[Node], list[Node]]:
    """The inputs and the results."""
    user = set(program.graph_signature.user_inputs)
    return [n for n in graph.nodes if n.op == "placeholder" and n.name in user], graph.output_node().all_input_nodes


def _foreign(node: Node, home: set[str]) -> bool:
    """Whether no engine has such a tensor: for its dtype, or because it is not on the model's device."""
    value = node.meta["val"]
    return str(value.dtype).removeprefix("torch.") not in PLAN_DTYPES or value.device.type not in home


def _has_unknown_size(node: Node) -> bool:
    return any(free_unbacked_symbols(tensor) for tensor in tensors_of(node))


def _cast_input(node: Node) -> list[str]:
    """Give the readers of an input, which all convert it, a dtype that an engine takes: one with all its values, or the
    one that they all convert it to."""
    checks = [user for user in node.users if user.target is aten._assert_tensor_metadata.default]
    casts = [user for user in node.users if user not in checks and not is_number(user)]
    value, wanted = node.meta["val"], {user.meta["val"].dtype for user in casts}
    if any(user.target is not aten._to_copy.default for user in casts):
        raise _InTheMiddle
    if value.dtype not in _WIDER and len(wanted) > 1:
        raise _InTheMiddle
    for check in checks:
        node.graph.erase_node(check)
    if not casts:
        return []
    dtype = _WIDER.get(value.dtype) or wanted.pop()
    with node.graph.inserting_before(casts[0]):
        cast = _call(casts[0], aten._to_copy.default, (node,), {"dtype": dtype}, value.to(dtype))
    for reader in casts:
        reader.replace_input_with(node, cast)
    return [cast.name]


def _last(node: Node, home: set[str]) -> str:
    """The name of ``node``, a result that is made last of all, by a copy of what an engine gives."""
    source = node.args[0] if node.args else None
    if node.target is not aten._to_copy.default or not isinstance(source, Node) or len(node.users) > 1:
        raise _InTheMiddle
    if _foreign(source, home):
        raise _InTheMiddle
    if source.op == "placeholder":  # an engine gives what it has made
        with node.graph.inserting_before(node):
            made = _call(node, aten.clone.default, (source,), {}, source.meta["val"])
        node.replace_input_with(source, made)
    return node.name


def _call(like: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Node:
    """A call where ``like`` is in the user's model."""
    node = like.graph.call_function(target, args, kwargs)
    node.meta = {**like.meta, "val": value}
    return node
