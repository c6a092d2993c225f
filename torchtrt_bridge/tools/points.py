"""Where to look inside a captured program, and the same program with what is seen there among its results."""

from __future__ import annotations

import collections
import copy
import dataclasses
import operator
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument
from torch.fx import Node
from torch.utils import _pytree

from ..batch_norm import fold_batch_norm
from ..capture import CapturedModel
from ..fx_nodes import module_path, operator_name, retyped
from ..operator_classes import VIEWS
from ..partition import Graph
from ..program_graph import rebuild
from ..signature import TensorSpec
from ..sizes import Sizes


@dataclasses.dataclass(frozen=True)
class Point:
    """A tensor of a captured program: the name of its node, the user's module that computes it (``""`` is the model
    itself), and by which operator (``"linear"``; ``"conv2d + batch_norm"`` where one is folded into the other)."""

    node: str
    place: str
    operator: str


def points(program: ExportedProgram, level: str) -> list[Point]:
    """The float tensors to look at, in the graph's order.

    ``level="module"``: what one module hands to another; ``"operator"``: the result of every operator. Views are
    followed back to what they show. Left out is what no input changes, and what a batch normalization that is folded
    into the layer before it reads: a compiled module has no such tensor.
    """
    varying = _varying(program)
    unfolded = {node.name for node in fold_batch_norm(program).graph.nodes}
    found: dict[Node, Point] = {}
    for node in program.graph.nodes:
        if node.op != "call_function" or not _is_float(node) or (level == "module" and not _leaves_its_module(node)):
            continue
        source = _shown(node)
        read_by_folded = all(user.name not in unfolded for user in source.users)
        if source in varying and source not in found and source.op == "call_function" and not read_by_folded:
            found[source] = _point(source, unfolded)
    return [found[node] for node in program.graph.nodes if node in found]


def observe(captured: CapturedModel, nodes: Iterable[str]) -> CapturedModel:
    """``captured`` with the tensors of ``nodes`` as further results, after its own, named ``observed.0``, ..."""
    program = with_results(captured.program, nodes)
    sizes = Sizes(captured, Graph(captured.program, {}))
    outputs = list(captured.signature.outputs)
    own = len(outputs)
    for index, node in enumerate(program.graph.output_node().args[0][own:]):  # type: ignore[index, arg-type]
        value = node.meta["val"]
        shape = tuple(map(sizes.text, value.shape))
        outputs.append(TensorSpec(f"observed.{index}", str(value.dtype).removeprefix("torch."), shape))
    signature = dataclasses.replace(captured.signature, outputs=tuple(outputs))
    # the forms of converters are in another program, which does not give these results
    return dataclasses.replace(captured, program=program, signature=signature, formed=None, calls={}, routes={})


def with_results(program: ExportedProgram, names: Iterable[str]) -> ExportedProgram:
    """``program`` with the tensors of the nodes ``names`` as further results, after its own."""
    result = rebuild(program, copy.deepcopy(program.graph), {})  # which checks that results and signature agree
    nodes = {node.name: node for node in result.graph.nodes}
    output = result.graph.output_node()
    added = [nodes[name] for name in names]
    own: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    output.args = ((*own, *added),)
    result.graph_module.recompile()
    specs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in added]
    result.graph_signature.output_specs += specs
    call = result.module_call_graph[0].signature
    assert call is not None
    call.outputs = []  # nobody asks for their names, which folding may change
    call.out_spec = _pytree.tree_structure(tuple(output.args[0]))  # type: ignore[arg-type]
    return result


def retype_results(captured: CapturedModel, dtypes: Sequence[torch.dtype]) -> CapturedModel:
    """``captured`` with results of other float dtypes: one for each, in order."""
    specs = captured.signature.outputs
    outputs = tuple(dataclasses.replace(s, dtype=str(d).removeprefix("torch.")) for s, d in zip(specs, dtypes))
    return dataclasses.replace(
        captured,
        program=_retyped(captured.program, dtypes),
        signature=dataclasses.replace(captured.signature, outputs=outputs),
        formed=_retyped(captured.formed, dtypes) if captured.formed is not None else None,
        routes={name: retype_results(other, dtypes) for name, other in captured.routes.items()},
    )


def _retyped(program: ExportedProgram, dtypes: Sequence[torch.dtype]) -> ExportedProgram:
    changed = rebuild(program, copy.deepcopy(program.graph), {})
    output, specs = changed.graph.output_node(), changed.graph_signature.output_specs
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    for index, (node, dtype) in enumerate(zip(results, dtypes)):
        if node.meta["val"].dtype == dtype:
            continue
        with changed.graph.inserting_before(output):
            results[index] = changed.graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": dtype})
        results[index].meta = {**node.meta, "val": retyped(node.meta["val"], dtype)}
        specs[index] = dataclasses.replace(specs[index], arg=TensorArgument(results[index].name))
    output.args = (tuple(results),)
    changed.graph_module.recompile()
    call = changed.module_call_graph[0].signature
    assert call is not None
    call.outputs = []
    return changed


def counterparts(
    wanted: Iterable[str], own: Iterable[tuple[str, Hashable]], others: Iterable[tuple[str, Hashable]]
) -> dict[str, str]:
    """For the names in ``wanted``, those in ``others`` that stand where they stand in ``own``.

    Both list ``(name, kind)`` in their graph's order. The names alone do not carry over: torch numbers them anew for
    every graph. The n-th of a kind in one is the n-th of that kind in the other; where a kind has not equally many
    members in both, none of them has a counterpart.
    """
    mine, theirs = _by_kind(own), _by_kind(others)
    pairs: dict[str, str] = {}
    for kind, names in mine.items():
        if len(names) == len(theirs.get(kind, ())):
            pairs.update(zip(names, theirs[kind]))
    return {name: pairs[name] for name in wanted if name in pairs}


def kinds(program: ExportedProgram) -> list[tuple[str, Hashable]]:
    """``(name, kind)`` of the operators of ``program``, for :func:`counterparts`; a kind is a place and an operator."""
    return [
        (node.name, (module_path(node), str(node.target), node.args[1] if node.target is operator.getitem else None))
        for node in program.graph.nodes
        if node.op == "call_function"
    ]


def _by_kind(named: Iterable[tuple[str, Hashable]]) -> dict[Hashable, list[str]]:
    found: dict[Hashable, list[str]] = collections.defaultdict(list)
    for name, kind in named:
        found[kind].append(name)
    return found


def _varying(program: ExportedProgram) -> set[Node]:
    """The nodes that depend on the user's inputs."""
    inputs = set(program.graph_signature.user_inputs)
    varying: set[Node] = set()
    for node in program.graph.nodes:
        if node.name in inputs or varying.intersection(node.all_input_nodes):
            varying.add(node)
    return varying


def _leaves_its_module(node: Node) -> bool:
    return any(user.op == "output" or _call(user) != _call(node) for user in node.users)


def _call(node: Node) -> str:
    """The call of the innermost module that ``node`` belongs to; a module that is called twice has two."""
    return next(reversed(node.meta.get("nn_module_stack") or {}), "")


def _shown(node: Node) -> Node:
    while node.op == "call_function" and operator_name(node) in VIEWS:
        node = node.all_input_nodes[0]
    return node


def _point(node: Node, unfolded: set[str]) -> Point:
    if node.name in unfolded:
        name = operator_name(node)
        if node.target is operator.getitem:
            name = f"{operator_name(node.all_input_nodes[0])}[{node.args[1]}]"
        return Point(node.name, module_path(node), name)
    norm = node.all_input_nodes[0] if node.target is operator.getitem else node
    layer = norm.all_input_nodes[0]
    return Point(node.name, module_path(layer), f"{operator_name(layer)} + batch_norm")


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
