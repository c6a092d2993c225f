"""Markers in an ONNX model, where converters are to make TensorRT layers.

The parser knows no operators but its own. So each call goes into the ONNX model as Identity nodes: one for each of its
arguments, with nothing after it, and two for each result, the first of which reads a stand-in, zeros of the result's
shape, so that the parser can go on. Afterwards the form makes its layers from what the arguments' markers read, and the
second marker of each result reads those (:mod:`.onnx_layers`). What is dead then, TensorRT drops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from ..export_lock import export_lock
from ..forms import FormCall, call_of, tensors_of
from ..layer_forms import makes_layers
from ..trt.handwritten import Expected
from ..trt.targets import installed

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "torchtrt_bridge"
_OPERATOR = "Call"


@dataclasses.dataclass(frozen=True)
class Marked:
    """A call in an ONNX model: the number of its arguments, what it must give, and those of the model's initializers
    whose values TensorRT does not show (bfloat16), by the argument's number."""

    call: FormCall
    arguments: int
    results: tuple[Expected, ...]
    hidden: Mapping[int, str] = dataclasses.field(default_factory=dict)


def mark(program: ExportedProgram) -> tuple[ExportedProgram, tuple[Marked, ...]]:
    """``program`` with each call that becomes layers as one node of ONNX's, which :func:`place_markers` looks for."""
    calls = {node.target: call for node in program.graph.nodes if (call := call_of(node.target)) is not None}
    flavor = installed() if calls else None
    marked: list[Marked] = []
    table = {
        operator: _marking(call, operator, marked)
        for operator, call in calls.items()
        if flavor is not None and makes_layers(call, flavor)
    }
    if not table:
        return program, ()
    with export_lock:
        return program.run_decompositions(table), tuple(marked)


def _marking(call: FormCall, operator: Any, marked: list[Marked]) -> Any:
    """What takes the operator's place while the program is traced again."""

    def form(*values: Any) -> Any:
        with disable_proxy_modes_tracing():
            made = operator(*values)
        results = tensors_of(made)
        arguments = [_tensor(value) for value in values]
        try:
            stand_ins = _stand_ins(results)
        except RuntimeError:  # a size that tracing cannot write out: it is asked of the call spelled out
            results = call.spelled(values)
            stand_ins = _stand_ins(results)
        marked.append(Marked(call, len(arguments), tuple(Expected.of(t) for t in results)))
        found = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{_OPERATOR}",
            [*arguments, *stand_ins],
            {"number": len(marked) - 1},
            dtypes=[t.dtype for t in results],
            shapes=[t.shape for t in results],
            version=1,
        )
        found = [value.to(like.device) for value, like in zip(found, results)]  # torch makes them for the CPU
        return found[0] if isinstance(made, torch.Tensor) else found

    return form


def _stand_ins(results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Zeros of the shapes of ``results``, of those with dynamic sizes. (torch.onnx would compute and keep the others;
    :func:`place_markers` makes them.)"""
    dynamic = [tensor for tensor in results if -1 in Expected.of(tensor).shape]
    return [torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape) for like in dynamic]


def _tensor(value: Any) -> torch.Tensor:
    """An argument of a call as a tensor: a size becomes one of one element, as TensorRT has them."""
    return value if isinstance(value, torch.Tensor) else torch.full((1,), value, dtype=torch.int64)


def place_markers(model: ir.Model, marked: Sequence[Marked]) -> dict[int, Marked]:
    """Put Identity nodes where :func:`mark` left calls, in a model made from its program. Returns the calls that are
    in it, by number."""
    import onnx_ir as ir

    graph = model.graph
    placed = {}
    for node in [node for node in graph if node.domain == DOMAIN]:
        number = node.attributes["number"].as_int()
        arguments = marked[number].arguments
        hidden = {}
        for index, value in enumerate(node.inputs[:arguments]):
            assert value is not None
            if value.const_value is not None and value.dtype == ir.DataType.BFLOAT16:
                hidden[index] = str(value.name)
        placed[number] = dataclasses.replace(marked[number], hidden=hidden)
        for index, value in enumerate(node.inputs[:arguments]):
            graph.insert_before(node, ir.Node("", "Identity", [value], name=argument_name(number, index)))
        dynamic = iter(node.inputs[arguments:])
        for index, (value, expected) in enumerate(zip(node.outputs, marked[number].results)):
            stand_in = next(dynamic) if -1 in expected.shape else _fixed(graph, node, value, expected.shape)
            given = ir.Node("", "Identity", [stand_in], name=f"{DOMAIN}.call.{number}/stand_in.{index}")
            given.outputs[0].name = f"{DOMAIN}_call_{number}_{index}"
            read = ir.Node("", "Identity", given.outputs, name=result_name(number, index))
            graph.insert_before(node, [given, read])
            _replace(graph, value, read.outputs[0])
        graph.remove(node, safe=True)
    model.opset_imports.pop(DOMAIN, None)
    return placed


def _fixed(graph: ir.Graph, before: ir.Node, like: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Zeros of ``shape``, in the dtype of ``like``."""
    import onnx_ir as ir

    def constant(array: Any) -> ir.Node:
        return ir.Node("", "Constant", [], attributes=[ir.AttrTensor("value", ir.tensor(array))])

    assert like.dtype is not None
    zero, sizes = constant(np.zeros((), np.float32)), constant(np.array(shape, np.int64))
    cast = ir.Node("", "Cast", zero.outputs, attributes=[ir.AttrInt64("to", like.dtype)])
    expand = ir.Node("", "Expand", [cast.outputs[0], sizes.outputs[0]])
    graph.insert_before(before, [zero, sizes, cast, expand])
    return expand.outputs[0]


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let ``new``, by the name of ``old``, be read wherever ``old`` is, and be a result where that is one."""
    name, old.name = old.name, None
    new.name, new.shape, new.type = name, old.shape, old.type
    for node, index in tuple(old.uses()):
        node.replace_input_with(index, new)
    for index, result in enumerate(graph.outputs):
        if result is old:
            graph.outputs[index] = new


def argument_name(number: int, index: int) -> str:
    """The name of the node, and of TensorRT's layer, that marks an argument of a call."""
    return f"{DOMAIN}.call.{number}/argument.{index}"


def result_name(number: int, index: int) -> str:
    """The same of a result."""
    return f"{DOMAIN}.call.{number}/result.{index}"
