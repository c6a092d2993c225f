"""A piece of a captured program as a program of its own, made directly: its nodes copied with their metadata, its
parameters lifted again. Nothing is traced a second time, so names, module paths and sizes stay those of the whole."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    SymIntArgument,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.utils import _pytree

from .partition import has_size, is_number, reads_data, tensors_of
from .program_graph import rebuild


def subprogram(
    program: ExportedProgram, nodes: Sequence[Node], inputs: Sequence[Node], outputs: Sequence[Node]
) -> ExportedProgram:
    """The program that computes ``outputs`` from ``inputs`` by ``nodes``, all of them nodes of ``program``.

    What ``nodes`` read besides is copied: parameters, what is made from constants, and the numbers made from shapes,
    which are computed from the shape of an input of the new program where one has that size. ``program`` is unchanged,
    and shares its tensors.
    """
    part = _Copy(program, nodes, inputs)
    for node in nodes:
        part.node(node)
    return part.finish(outputs)


def without_repeats(program: ExportedProgram) -> ExportedProgram:
    """``program`` with each call made once where it makes the same of the same tensors again; results stay as they are.

    torch.onnx makes repeats among a piece's outputs identities of the first, and TensorRT for RTX 1.6, by what came
    out, did not write the first's memory then. Returns ``program`` itself where nothing repeats.
    """
    graph = copy.deepcopy(program.graph)
    results = set(graph.output_node().all_input_nodes)
    first: dict[str, Node] = {}
    repeats = []
    for node in graph.nodes:
        if node.op != "call_function" or not (_is_pure(node) or node.target is operator.getitem):
            continue
        kept = first.setdefault(repr((str(node.target), node.args, node.kwargs)), node)
        if kept is not node and node not in results:
            node.replace_all_uses_with(kept)
            repeats.append(node)
    for node in reversed(repeats):
        graph.erase_node(node)
    return rebuild(program, graph, {}) if repeats else program


def _is_pure(node: Node) -> bool:
    """Whether ``node`` is one of PyTorch's own operators, makes tensors of sizes known before, and draws no numbers."""
    target = node.target
    own = isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and not target._schema.is_mutable
    random = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
    return own and not random and bool(tensors_of(node)) and not reads_data(node)


class _Copy:
    def __init__(self, program: ExportedProgram, nodes: Sequence[Node], inputs: Sequence[Node]):
        self._program = program
        self._graph = Graph()
        self._copies: dict[Node, Node] = {}
        self._modules: dict[str, Any] = {}
        self._inputs = tuple(inputs)
        lifted = _reached(nodes, set(inputs))
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._lifted = [specs[n.name] for n in program.graph.nodes if n in lifted]
        for node in [*(n for n in program.graph.nodes if n in lifted), *inputs]:
            copied = self._graph.placeholder(node.name)
            copied.meta = dict(node.meta)
            self._copies[node] = copied

    def node(self, node: Node) -> Node:
        """The copy of ``node``, made with all that it reads at its first mention."""
        if node in self._copies:
            return self._copies[node]
        if node.op == "get_attr":
            self._modules[str(node.target)] = operator.attrgetter(str(node.target))(self._program.graph_module)
        if is_number(node) and node.target is torch.ops.aten.sym_size.int:
            found = self._size(node)
            if found is not None:
                tensor, axis = found
                copied = self._graph.create_node("call_function", node.target, (tensor, axis), name=node.name)
                copied.meta = dict(node.meta)
                self._copies[node] = copied
                return copied
        for source in node.all_input_nodes:
            self.node(source)
        copied = self._graph.node_copy(node, self._copies.__getitem__)
        copied.meta = dict(node.meta)
        self._copies[node] = copied
        return copied

    def _size(self, node: Node) -> tuple[Node, int] | None:
        """The input of the new program, and its axis, that has the size which ``node`` reads elsewhere."""
        if node.args[0] in self._copies:
            return None
        for tensor in self._inputs:
            axis = has_size(tensor, node)
            if axis is not None:
                return self._copies[tensor], axis
        return None

    def finish(self, outputs: Sequence[Node]) -> ExportedProgram:
        graph = self._graph
        graph.output(tuple(self._copies[node] for node in outputs))
        module = GraphModule(self._modules, graph)
        signature = ExportGraphSignature(
            input_specs=[*self._lifted, *(InputSpec(InputKind.USER_INPUT, _argument(n), None) for n in self._inputs)],
            output_specs=[OutputSpec(OutputKind.USER_OUTPUT, _argument(self._copies[n]), None) for n in outputs],
        )
        targets = {spec.target for spec in self._lifted}
        return ExportedProgram(
            root=module,
            graph=graph,
            graph_signature=signature,
            state_dict={name: value for name, value in self._program.state_dict.items() if name in targets},
            range_constraints=self._ranges(graph),
            module_call_graph=[_call(len(self._inputs), len(outputs))],
            constants={name: value for name, value in self._program.constants.items() if name in targets},
            verifiers=self._program.verifiers,
        )

    def _ranges(self, graph: Graph) -> dict[Any, Any]:
        used: set[Any] = set()
        for node in graph.nodes:
            for value in _pytree.tree_leaves(node.meta.get("val")):
                if isinstance(value, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
                    used |= free_symbols(value)
        return {symbol: limits for symbol, limits in self._program.range_constraints.items() if symbol in used}


def _reached(nodes: Sequence[Node], inputs: set[Node]) -> set[Node]:
    """The placeholders that ``nodes`` read, other than ``inputs``."""
    own = set(nodes)
    found: set[Node] = set()
    seen = set(inputs)
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder":
            found.add(node)
        elif not is_number(node) or node in own:
            waiting.extend(node.all_input_nodes)
    return found


def _argument(node: Node) -> TensorArgument | SymIntArgument:
    return SymIntArgument(node.name) if is_number(node) else TensorArgument(node.name)


def _call(inputs: int, outputs: int) -> ModuleCallEntry:
    """A call with flat arguments that gives a flat tuple."""
    signature = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=_pytree.tree_structure(((0,) * inputs, {})),
        out_spec=_pytree.tree_structure((0,) * outputs),
        forward_arg_names=None,
    )
    return ModuleCallEntry(fqn="", signature=signature)

