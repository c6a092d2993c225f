"""A call of a model exported as one program of flat tensors, and the signature that says what they are."""

from __future__ import annotations

import re
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from .dynamic import DynamicShapes
from .errors import BridgeError, CaptureFailed, StateMutated
from .exportable import allow_few_boxes, exportable_detection
from .flat_call import FlatCall, FlatResult
from .signature import Signature, TensorSpec, describe_parameters
from .specialization import Guards, explain_specialization
from .structure import Node


class FlatModule(nn.Module):
    """The user's model with flat tensors in and out, for torch.export. An input that the model writes to is a copy
    here, and given back after the results.

    ``traced.node`` is the result's node with the numbers that are made from shapes, seen while tracing. (An attribute
    of the module itself would be put back by torch.export.)
    """

    def __init__(
        self, model: nn.Module, call: FlatCall, result: FlatResult, written: tuple[int, ...], dynamic: DynamicShapes
    ):
        super().__init__()
        self.eval()
        self.model = model
        self._call, self._result, self._dynamic = call, result, dynamic
        self.written = written
        self.guards = Guards(dynamic)
        self.traced = types.SimpleNamespace(node=result.node)
        self.kept: list[int] = list(range(len(result.tensors) + len(written)))
        self.folded: list[torch.Tensor] = []

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.guards.watch(tensors)
        tensors = tuple(tensor.clone() if i in self.written else tensor for i, tensor in enumerate(tensors))
        value = self._call.run(self.model, tensors)
        self.traced.node = describe_traced(value, self._result.node)
        return (*self._result.select(value), *(tensors[i] for i in self.written))


def describe_traced(value: Any, node: Node) -> Node:
    """``node`` with every number of ``value`` that tracing found to depend on shapes as a ``size`` leaf."""
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        expression = str(value.node.expr)
        if not isinstance(value, torch.SymInt):
            raise CaptureFailed(
                f"The model returns {expression}, a {type(value).__name__[3:].lower()} made from an input's shape; only"
                " whole numbers can be. Compute it outside the model."
            )
        return {"leaf": {"size": expression}}
    for kind in ("list", "tuple", "size"):
        if kind in node:
            return {kind: [describe_traced(item, child) for item, child in zip(value, node[kind])]}
    if "dict" in node:
        return {**node, "dict": [[key, describe_traced(value[key], child)] for key, child in node["dict"]]}
    if "fields" in node and node["style"] != "pytree":
        mapping = node["style"] == "mapping"
        return {
            **node,
            "fields": [
                [key, describe_traced(value[key] if mapping else getattr(value, key), child)]
                for key, child in node["fields"]
            ],
        }
    return node


def export(
    flat: FlatModule, call: FlatCall, examples: tuple[torch.Tensor, ...], dynamic: DynamicShapes
) -> ExportedProgram:
    if not flat.kept:
        raise CaptureFailed("Every result of the model is an input, a parameter or a constant: nothing to compute.")
    try:
        # which kernel eager's attention would take is not the graph's matter; one on GPUs pads masks to multiples of
        # eight, and so ties a dynamic length to them
        with warnings.catch_warnings(), exportable_detection(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")
            program = torch.export.export(
                flat, examples, dynamic_shapes={"tensors": dynamic.for_export()}, strict=False
            )
            # functional form; the default table would split attention and linear, and fails on some models
            program = program.run_decompositions({})
        allow_few_boxes(program)
    except BridgeError:
        raise
    except Exception as error:
        specialized = explain_specialization(error, flat.guards, dynamic)
        if specialized is not None:
            raise specialized from error
        summary = re.split(r"\n\n\n|\nFor more information|\n\nThe error above", str(error).strip())[0]
        raise CaptureFailed(
            f"torch.export cannot capture the model: {type(error).__name__}: {summary}{flat.guards.last_user_line()}"
        ) from error
    finally:
        flat.guards.stop()
    _refuse_mutation(program, call.names)
    return program


def _refuse_mutation(program: ExportedProgram, names: Sequence[str]) -> None:
    """A mutation shows in the signature only after decomposition, also one that left the example's values alone."""
    signature = program.graph_signature
    for target in signature.buffers_to_mutate.values():
        raise StateMutated(
            f"The model writes to its buffer {target.removeprefix('model.')!r} when called; an engine's weights are"
            " fixed. Return the new value as a result and keep it outside."
        )
    for target in signature.user_inputs_to_mutate.values():
        name = names[list(signature.user_inputs).index(target)]
        raise StateMutated(f"The model writes to its input {name!r}; let it work on a copy (x = x.clone()).")


def sign(
    model: nn.Module,
    call: FlatCall,
    result: FlatResult,
    flat: FlatModule,
    program: ExportedProgram,
    dynamic: DynamicShapes,
    examples: tuple[torch.Tensor, ...],
) -> tuple[Signature, ExportedProgram]:
    """The signature of the finished program; results that no input changes leave the program and become constants."""
    symbols = dynamic.symbols(program)
    names = [*result.names, *(call.names[i] for i in flat.written)]
    folded = {i for i in _constant_outputs(program) if i < len(result.tensors)}
    flat.kept = [i for i in range(len(names)) if i not in folded]
    if not flat.kept:
        raise CaptureFailed("No result of the model depends on its inputs: nothing to compute.")
    number = {old: new for new, old in enumerate(flat.kept)}
    base = len(result.constants)
    where = {old: base + i for i, old in enumerate(sorted(folded))}
    flat.folded = [result.tensors[old].detach().cpu().clone() for old in sorted(folded)]

    def renumber(payload: Mapping[str, Any]) -> Node:
        if "size" in payload:
            size = dynamic.rename(payload["size"], symbols)
            if size == "?":
                raise CaptureFailed(
                    f"The model returns the number {payload['size']}, which depends on the values in its inputs. Return"
                    " it as a tensor, or compute it outside the model."
                )
            return {"leaf": {"size": size}}
        if "output" not in payload:
            return {"leaf": dict(payload)}
        old = payload["output"]
        return {"leaf": {"output": number[old]} if old in number else {"constant": where[old]}}

    if folded:
        program = _drop_outputs(program, folded)
    outputs = []
    for index, spec in zip(flat.kept, program.graph_signature.output_specs):
        value = next(n for n in program.graph.nodes if n.name == spec.arg.name).meta["val"]
        shape = tuple(dynamic.rename(size, symbols) for size in value.shape)
        outputs.append(TensorSpec(names[index], str(value.dtype).removeprefix("torch."), shape))
    inputs = tuple(
        TensorSpec(name, str(tensor.dtype).removeprefix("torch."), dynamic.spec_shape(i, tensor.shape))
        for i, (name, tensor) in enumerate(zip(call.names, examples))
    )
    signature = Signature(
        parameters=describe_parameters(call.signature),
        arguments=call.nodes,
        inputs=inputs,
        outputs=tuple(outputs),
        result=_map_leaves(flat.traced.node, renumber),
        dims=dynamic.dims,
        writes=tuple((i, number[len(result.tensors) + position]) for position, i in enumerate(flat.written)),
    )
    return signature, program


def _map_leaves(node: Node, change: Callable[[Mapping[str, Any]], Node]) -> Node:
    if "leaf" in node:
        return change(node["leaf"])
    for kind in ("list", "tuple", "size"):
        if kind in node:
            return {kind: [_map_leaves(child, change) for child in node[kind]]}
    for kind in ("dict", "fields"):
        if kind in node:
            return {**node, kind: [[key, _map_leaves(child, change)] for key, child in node[kind]]}
    return node


def _constant_outputs(program: ExportedProgram) -> set[int]:
    """Indices of the outputs that no user input and no random operator reaches."""
    inputs = set(program.graph_signature.user_inputs)
    varies: dict[str, bool] = {}
    for node in program.graph.nodes:
        random = node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        varies[node.name] = node.name in inputs or random or any(varies[n.name] for n in node.all_input_nodes)
    return {i for i, spec in enumerate(program.graph_signature.output_specs) if not varies[spec.arg.name]}


def _drop_outputs(program: ExportedProgram, dropped: set[int]) -> ExportedProgram:
    node = next(iter(reversed(program.graph.nodes)))
    node.args = (tuple(value for i, value in enumerate(node.args[0]) if i not in dropped),)
    specs = program.graph_signature.output_specs
    program.graph_signature.output_specs = [spec for i, spec in enumerate(specs) if i not in dropped]
    call = program.module_call_graph[0].signature  # which unflattens what the program returns
    assert call is not None
    call.outputs = [output for i, output in enumerate(call.outputs) if i not in dropped]
    call.out_spec = torch.utils._pytree.tree_structure(node.args[0])
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program
