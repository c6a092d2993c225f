"""ttb.explain(): what each route would do with a model and why, building nothing."""

from __future__ import annotations

import dataclasses
import html
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from .asked import ordinary_tensors, parse_device
from .backends.base import Backend, Place, Served
from .capture import CapturedModel, capture
from .edges import Edges
from .errors import BridgeError
from .forms import FormCall
from .lowering import lower, serving
from .precision import Precision
from .precision_support import check_support
from .quantization.settings import Quantization
from .registry import Registration, converter
from .selection import candidates
from .tracebacks import leaves_no_memory

_NAMES = {"aten": "ATen", "tensorrt": "TensorRT", "onnx": "ONNX"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """Operators of one kind in one module of the model that a route does not take.

    Args:
        operator: ``"aten.grid_sampler"``.
        place: the path of the module in the model; empty for the model itself.
        reason: why not.
        count: how many of them.
    """

    operator: str
    place: str
    reason: str
    count: int = 1

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.operator} in {self.place or 'the top module'}{times}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class RouteAnswer:
    """What one route says.

    Args:
        route: its name.
        takes: whether it would try the model as a whole, and knows of nothing in the way.
        reasons: why it would not try.
        layers: what stands in the way.
        taken: how many of the graph's operations it takes; None where only trying can tell.
        operations: how many there are, for this route: converters may be for some routes only.
        converters: what becomes of the calls that converters are for.
    """

    route: str
    takes: bool
    reasons: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    taken: int | None = None
    operations: int | None = None
    converters: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What each route would do with a model, in the order in which ``backend="auto"`` tries them.

    Args:
        precision: the precision asked about.
        where: the device, or the target, that was asked about.
        operations: how many operations the captured graph has.
        routes: the answers.
    """

    precision: str
    where: str
    operations: int
    routes: tuple[RouteAnswer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; each route has its ``share`` of the operations too."""
        data = dataclasses.asdict(self)
        for row, answer in zip(data["routes"], self.routes):
            row["share"] = self.share(answer)
        return data

    def share(self, answer: RouteAnswer) -> float | None:
        """The share of the operations that a route takes, 0 to 1."""
        return None if answer.taken is None else answer.taken / max(1, answer.operations or self.operations)

    def __repr__(self) -> str:
        lines = [f"{self.operations} operations, {self.precision}, on {self.where}"]
        for name, takes, share, why in self._rows():
            lines.append(f"{name:<16}{takes:<5}{share:>7}  {why[0]}".rstrip())
            lines += [f"{'':<30}{line}" for line in why[1:]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        left = "style='text-align:left;vertical-align:top'"
        head = "".join(f"<th {left}>{title}</th>" for title in ("route", "", "operations", "what stands in the way"))
        body = "".join(
            f"<tr><td {left}>{html.escape(name)}</td><td {left}>{takes}</td><td {left}>{share}</td>"
            f"<td {left}>{'<br>'.join(map(html.escape, why))}</td></tr>"
            for name, takes, share, why in self._rows()
        )
        caption = html.escape(f"{self.operations} operations, {self.precision}, on {self.where}")
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"

    def _rows(self) -> list[tuple[str, str, str, list[str]]]:
        rows = []
        for answer in self.routes:
            share = self.share(answer)
            why = [*answer.reasons, *map(str, answer.layers)]
            if not why and share is None:
                why = ["known by trying only"]
            why = [*why, *answer.converters] or [""]
            rows.append((answer.route, "yes" if answer.takes else "no", "" if share is None else f"{share:.1%}", why))
        return rows


@leaves_no_memory
def explain(
    model: nn.Module,
    inputs: Any,
    precision: Any = "fp32",
    *,
    dynamic_shapes: Any = None,
    dynamic_batch: tuple[int, int, int] | None = None,
    device: torch.device | str | None = None,
    target: str | None = None,
    calibration: Any = None,
    calibration_input: Any = None,
    quantize: Quantization | None = None,
    converters: Any = None,
) -> Explanation:
    """What each route would do with ``model``, and why. The model is captured; nothing is converted or built.

    A "yes" means that nothing is known to stand in the way: TensorRT's own builder has the last word.

    Args:
        target: ask about a GPU that is not here (see :func:`torchtrt_bridge.build`): ``"sm89"``, ``"portable"``.
        calibration: need not be given: which operators are quantized does not depend on it.

    The other arguments are those of :func:`torchtrt_bridge.compile`.

    Raises:
        CaptureFailed, InvalidInput, InvalidOption: as :func:`torchtrt_bridge.compile` raises them.

    Example:
        >>> import torch, torchtrt_bridge as ttb
        >>> found = ttb.explain(torch.nn.Linear(4, 2).eval(), torch.randn(1, 4))
        >>> found.routes[0].route, found.routes[0].takes, found.operations
        ('onnx', True, 1)
    """
    from .quantization.stage import any_ranges
    from .quantization.stage import quantize as quantized

    wanted, parsed, registered = parse_device(device), Precision.parse(precision), converter.snapshot(converters)
    with ordinary_tensors():
        captured = capture(
            model, inputs, dynamic_shapes=dynamic_shapes, dynamic_batch=dynamic_batch, converters=registered
        )
        captured = lower(captured, registered)
        parsed = parsed.bind(captured.program.graph, captured.model)
        place = Place(torch.device("cpu"), target) if target else Place(wanted or captured.device)
        check_support(parsed, place)
        if parsed.quantized and calibration is None:
            calibration = any_ranges(captured.program)
        captured, parsed = quantized(captured, parsed, place, calibration, calibration_input, quantize)
        answers = tuple(_answer(route, captured, place) for route in candidates("auto"))
    return Explanation(str(parsed), str(place), len(_operations(captured.program)), answers)


def is_operation(node: Node) -> bool:
    """Whether ``node`` computes tensors: what a share is counted in."""
    value = node.meta.get("val")
    tensors = isinstance(value, (torch.Tensor, list, tuple))
    return node.op == "call_function" and node.target is not operator.getitem and tensors


def place_of(node: Node) -> str:
    """The path, in the user's model, of the module that ``node`` came from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).removeprefix("model").removeprefix(".") if stack else ""


def _answer(route: Backend, captured: CapturedModel, place: Place) -> RouteAnswer:
    captured = captured.for_route(route.name)
    ask = getattr(route, "refusals", None)
    edges = Edges.of(captured, place) if ask is not None else None
    captured = captured if edges is None else edges.inner
    support = route.supports(captured, place)
    if support.missing or ask is None:
        return RouteAnswer(route.name, support.possible, support.reasons)
    served = {call: route.served(call, place) for call in captured.calls.values()}  # type: ignore[attr-defined]
    program = serving(captured, lambda call: served[call].form is not None)
    converters = tuple(_converters(captured, served))
    try:
        refused = ask(program, place)
    except BridgeError as error:
        reasons = (*support.reasons, str(error).splitlines()[0])
        return RouteAnswer(route.name, False, reasons, converters=converters)
    work = _operations(program)
    taken = len(work) - sum(name in refused for name in work)
    takes = support.possible and not refused
    return RouteAnswer(route.name, takes, support.reasons, _layers(program, refused), taken, len(work), converters)


def _operations(program: ExportedProgram) -> list[str]:
    return [node.name for node in program.graph.nodes if is_operation(node)]


def _converters(captured: CapturedModel, served: Mapping[FormCall, Served]) -> list[str]:
    """A line for each converter and what becomes of the calls that it is for, with the place of the first."""
    found: dict[tuple[str, str], list[str]] = {}

    def add(registration: Registration, place: str, what: str) -> None:
        found.setdefault((f"{registration.target}", what), []).append(place or "the top module")

    for call, answer in served.items():
        assert call.registration is not None
        form = answer.form or ("aten" if call.registration.aten is not None else "")
        what = f"the converter's {_NAMES[form]} form" if form else "as it is; no form serves this route"
        add(call.registration, call.place, f"{what}; {answer.reason}" if answer.reason else what)
    opaque = {(call.registration, call.place) for call in served}
    for each in captured.conversions:
        if each.rejected:
            add(each.registration, each.place, f"not converted: {each.rejected}")
        elif (each.registration, each.place) not in opaque:
            add(each.registration, each.place, "the converter's ATen form")
    return [
        f"{target} in {places[0]}{f' ({len(places)} times)' if len(places) > 1 else ''}: {what}"
        for (target, what), places in found.items()
    ]


def _layers(program: ExportedProgram, refused: dict[str, str]) -> tuple[Layer, ...]:
    """The refused nodes, those alike in one module together, in the order of the graph."""
    found: dict[tuple[str, str, str], int] = {}
    for node in program.graph.nodes:
        if node.name in refused:
            name = str(node.target).removesuffix(".default")
            key = name, place_of(node), _without(refused[node.name], name)
            found[key] = found.get(key, 0) + 1
    return tuple(Layer(*key, count) for key, count in found.items())


def _without(reason: str, name: str) -> str:
    """``reason`` without the operator's name at its start, which stands before it already."""
    return reason.removeprefix(f"{name} ")
