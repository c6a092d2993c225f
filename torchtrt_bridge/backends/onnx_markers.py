"""A converter's TensorRT layers on the ONNX route: markers in the ONNX model, and the layers between them once TensorRT
has parsed it.

The parser knows no operators but its own. So each call goes into the ONNX model as Identity nodes: one for each of its
arguments, with nothing after it, and two for each result, the first of which reads a stand-in, zeros of the result's
shape, so that the parser can go on. Afterwards the form makes its layers from what the arguments' markers read, and the
second marker of each result reads those. What is dead then, TensorRT drops.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from ..crossing import from_plain as call_from_plain
from ..crossing import stays, to_plain
from ..export_lock import export_lock
from ..forms import FormCall, call_of, tensors_of
from ..layer_forms import layer_form, makes_layers, target_of
from ..trt.conversion import ConversionContext
from ..trt.flavor import Flavor
from ..trt.handwritten import Expected, add_layers
from ..trt.handwritten import tensors_of as results_of
from ..trt.request import Failure, Initializer
from ..trt.targets import installed

if TYPE_CHECKING:
    import onnx_ir as ir

_DOMAIN = "torchtrt_bridge"
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
    if not calls:
        return program, ()
    flavor = installed()
    marked: list[Marked] = []
    table = {
        operator: _marking(call, operator, marked)
        for operator, call in calls.items()
        if makes_layers(call, flavor)
    }
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
            stand_ins = [_zeros(tensor) for tensor in results]
        except RuntimeError:  # a size that tracing cannot write out: it is asked of the call spelled out
            results = call.spelled(values)
            stand_ins = [_zeros(tensor) for tensor in results]
        marked.append(Marked(call, len(arguments), tuple(Expected.of(t) for t in results)))
        found = torch.onnx.ops.symbolic_multi_out(
            f"{_DOMAIN}::{_OPERATOR}",
            [*arguments, *stand_ins],
            {"number": len(marked) - 1},
            dtypes=[t.dtype for t in results],
            shapes=[t.shape for t in results],
            version=1,
        )
        return found[0] if isinstance(made, torch.Tensor) else list(found)

    return form


def _zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)


def _tensor(value: Any) -> torch.Tensor:
    """An argument of a call as a tensor: a size becomes one of one element, as TensorRT has them."""
    return value if isinstance(value, torch.Tensor) else torch.full((1,), value, dtype=torch.int64)


def place_markers(model: ir.Model, marked: Sequence[Marked]) -> dict[int, Marked]:
    """Put Identity nodes where :func:`mark` left calls, in a model made from its program. Returns the calls that are
    in it, by number."""
    import onnx_ir as ir

    graph = model.graph
    placed = {}
    for node in [node for node in graph if node.domain == _DOMAIN]:
        number = node.attributes["number"].as_int()
        arguments = marked[number].arguments
        hidden = {}
        for index, value in enumerate(node.inputs[:arguments]):
            assert value is not None
            if value.const_value is not None and value.dtype == ir.DataType.BFLOAT16:
                hidden[index] = str(value.name)
        placed[number] = dataclasses.replace(marked[number], hidden=hidden)
        for index, value in enumerate(node.inputs[:arguments]):
            graph.insert_before(node, ir.Node("", "Identity", [value], name=_argument(number, index)))
        for index, (value, stand_in) in enumerate(zip(node.outputs, node.inputs[arguments:])):
            given = ir.Node("", "Identity", [stand_in], name=f"{_DOMAIN}.call.{number}/stand_in.{index}")
            given.outputs[0].name = f"{_DOMAIN}_call_{number}_{index}"
            read = ir.Node("", "Identity", given.outputs, name=_result(number, index))
            graph.insert_before(node, [given, read])
            _replace(graph, value, read.outputs[0])
        graph.remove(node, safe=True)
    model.opset_imports.pop(_DOMAIN, None)
    return placed


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let ``new``, by the name of ``old``, be read wherever ``old`` is, and be a result where that is one."""
    name, old.name = old.name, None
    new.name, new.shape, new.type = name, old.shape, old.type
    for node, index in tuple(old.uses()):
        node.replace_input_with(index, new)
    for index, result in enumerate(graph.outputs):
        if result is old:
            graph.outputs[index] = new


class Layers:
    """The layers of the placed calls: what a build request takes for the network that the parser made.

    Args:
        placed: the calls by number, as :func:`place_markers` gave them.
    """

    def __init__(self, placed: Mapping[int, Marked]):
        self._placed = dict(placed)

    def __call__(self, flavor: Flavor, network: Any, initializers: Mapping[str, Initializer]) -> Any:
        """Returns what must live until the plan is there."""
        ctx = ConversionContext(flavor, network)
        layers = (network.get_layer(index) for index in range(network.num_layers))
        markers = {layer.name: layer for layer in layers if layer.name.startswith(f"{_DOMAIN}.call.")}
        for number, marked in self._placed.items():
            call, registration = marked.call, marked.call.registration
            form = layer_form(registration, flavor) if registration is not None else None
            assert form is not None
            names = [_argument(number, i) for i in range(marked.arguments)]
            names += [_result(number, i) for i in range(len(marked.results))]
            if lost := [name for name in names if name not in markers]:
                raise Failure(f"TensorRT's parser made no layer of {lost[0]!r}, which marks a call of {call}.")
            arguments = [markers[name].get_input(0) for name in names[: marked.arguments]]
            for index, name in marked.hidden.items():
                ctx.know(arguments[index], _bfloat16(initializers[name], arguments[index].shape))
            args, kwargs = call.bind(arguments)
            with ctx.scope(call.place, target_of(call)):
                results = add_layers(ctx, form, args, kwargs, functools.partial(results_of, ctx, marked.results))
            for name, result in zip(names[marked.arguments :], results):
                markers[name].set_input(0, result)
        return ctx

    @property
    def calls(self) -> list[FormCall]:
        """The calls, each once."""
        return [marked.call for marked in self._placed.values()]

    @property
    def constants(self) -> set[str]:
        """The initializers that the calls need beside the ONNX model."""
        return {name for marked in self._placed.values() for name in marked.hidden.values()}

    def stays(self) -> str | None:
        """Why a child process cannot be given this; None if it can."""
        return next((reason for marked in self._placed.values() if (reason := stays(marked.call)) is not None), None)

    def to_plain(self) -> dict[str, Any]:
        """JSON-able data, of which :func:`from_plain` makes this in a child process."""
        calls = [
            {
                "number": number,
                "call": to_plain(marked.call),
                "arguments": marked.arguments,
                "results": [[each.dtype, list(each.shape)] for each in marked.results],
                "hidden": list(marked.hidden.items()),
            }
            for number, marked in self._placed.items()
        ]
        return {"module": __name__, "calls": calls}


def from_plain(data: Mapping[str, Any]) -> Layers:
    """What :meth:`Layers.to_plain` described.

    Raises:
        LookupError: see :func:`torchtrt_bridge.crossing.from_plain`.
    """
    placed = {}
    for each in data["calls"]:
        results = tuple(Expected(dtype, tuple(shape)) for dtype, shape in each["results"])
        marked = Marked(call_from_plain(each["call"]), each["arguments"], results, dict(each["hidden"]))
        placed[each["number"]] = marked
    return Layers(placed)


def _bfloat16(weight: Initializer, shape: Any) -> torch.Tensor:
    data = (ctypes.c_char * weight.nbytes).from_address(weight.address)
    return torch.frombuffer(data, dtype=torch.bfloat16).reshape(tuple(shape)).clone()


def _argument(number: int, index: int) -> str:
    return f"{_DOMAIN}.call.{number}/argument.{index}"


def _result(number: int, index: int) -> str:
    return f"{_DOMAIN}.call.{number}/result.{index}"
