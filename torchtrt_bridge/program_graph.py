"""An exported program with another graph, or with other tensors."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
from collections.abc import Mapping

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Graph, Node

Constants = Mapping[str, tuple[InputSpec, torch.Tensor]]


def constants_of(program: ExportedProgram) -> dict[str, tuple[InputSpec, torch.Tensor]]:
    """The tensors that the graph takes besides the user's inputs, by the names of their placeholders."""
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            holder = program.state_dict if spec.target in program.state_dict else program.constants
            found[spec.arg.name] = spec, holder[spec.target]  # type: ignore[union-attr]
    return found


def rebuild(
    program: ExportedProgram,
    graph: Graph,
    tensors: Mapping[str, torch.Tensor],
    inputs: list[InputSpec] | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> ExportedProgram:
    """A program like ``program`` with another graph, and with ``tensors``, by placeholder, in place of its own.

    ``inputs`` says what the placeholders are where they are others than those of ``program``; the parameters among them
    that it does not have are ``state``, by name.
    """
    signature = copy.deepcopy(program.graph_signature)
    if inputs is not None:
        signature.input_specs = inputs
    results = graph.find_nodes(op="output")[0].args[0]
    signature.output_specs = [
        dataclasses.replace(spec, arg=dataclasses.replace(spec.arg, name=result.name))
        if isinstance(result, Node)
        else spec
        for spec, result in zip(signature.output_specs, results)
    ]
    held, constants = {**program.state_dict, **(state or {})}, dict(program.constants)
    if inputs is not None:
        used = {spec.target for spec in inputs}
        held = {name: tensor for name, tensor in held.items() if name in used}
    for spec in signature.input_specs:
        tensor = tensors.get(getattr(spec.arg, "name", ""))
        if tensor is None:
            continue
        assert spec.target is not None
        if spec.kind == InputKind.PARAMETER:
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        (held if spec.target in held else constants)[spec.target] = tensor
    # the subgraphs of higher-order operators belong to one program each: later passes edit them in place
    subgraphs = {n.target: copy.deepcopy(operator.attrgetter(n.target)(program.graph_module)) for n in graph.nodes
                 if n.op == "get_attr"}  # fmt: skip
    module = torch.fx.GraphModule(subgraphs, graph)
    module.meta.update(program.graph_module.meta)
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=signature,
        state_dict=held,
        range_constraints=dict(program.range_constraints),
        module_call_graph=[
            dataclasses.replace(entry, signature=copy.copy(entry.signature)) for entry in program.module_call_graph
        ],
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )


def unguarded(program: ExportedProgram) -> torch.fx.GraphModule:
    """The program with its tensors as attributes, without torch's own check of each call's shapes."""
    options = {"check_guards": False}
    known = inspect.signature(program.module).parameters
    return program.module(**{name: value for name, value in options.items() if name in known})  # type: ignore[return-value]
