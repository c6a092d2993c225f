"""Operators that only the caller's process knows, taken out of a program so that the rest can be asked about.

A program may call operators that it registered by itself (``torch.library``). The process that holds Torch-TensorRT
does not have them, nor converters for them; their results become inputs there, and what they take becomes a result.
"""

from __future__ import annotations

import copy
import operator
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.fx import Graph, GraphModule, Node

#: torch's own; any other namespace must be that of an imported package, which the other process can import too.
_OWN = ("aten", "prims", "higher_order", "quantized_decomposed", "torchtrt_bridge_quantization")


def foreign(program: ExportedProgram) -> dict[str, str]:
    """The nodes that call such operators, by name, and why they are refused."""
    return {
        node.name: f"torch_tensorrt has no converter for {node.target}, which the program registers by itself"
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target.namespace not in _OWN
        and node.target.namespace not in sys.modules
    }


def without(program: ExportedProgram, names: Iterable[str]) -> ExportedProgram:
    """A copy of ``program`` in which the results of the nodes called ``names`` are inputs."""
    graph = copy.deepcopy(program.graph)
    signature = copy.deepcopy(program.graph_signature)
    taken = set(names)
    last = list(graph.find_nodes(op="placeholder"))[-1]
    output = graph.output_node()
    results = list(output.args[0])
    for node in [node for node in graph.nodes if node.name in taken]:
        for value in [user for user in node.users if user.target is operator.getitem] or [node]:
            with graph.inserting_after(last):
                last = graph.placeholder(f"{value.name}_given")
            last.meta = {"val": value.meta["val"]}
            value.replace_all_uses_with(last)
            results = [last if result is value else result for result in results]
            signature.input_specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(last.name), None))
        results += [n for n in node.all_input_nodes if _is_computed(n) and n not in results]
        for value in (*list(node.users), node):
            graph.erase_node(value)
    results = [n for n in results if not isinstance(n, Node) or n.op != "placeholder"]
    output.args = (tuple(results),)
    signature.output_specs = [
        OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in results if isinstance(n, Node)
    ]
    return _rebuilt(program, graph, signature)


def _is_computed(node: Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor)


def _rebuilt(program: ExportedProgram, graph: Graph, signature: Any) -> ExportedProgram:
    held = {n.target: copy.deepcopy(operator.attrgetter(n.target)(program.graph_module)) for n in graph.nodes
            if n.op == "get_attr"}  # fmt: skip
    return ExportedProgram(
        root=GraphModule(held, graph),
        graph=graph,
        graph_signature=signature,
        state_dict=dict(program.state_dict),
        range_constraints=dict(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=None,
        constants=dict(program.constants),
        verifiers=program.verifiers,
    )
