"""A converter's TensorRT layers on the ONNX route: put between the markers of :mod:`.onnx_markers`, once the parser has
read the model.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

import torch

from ..crossing import from_plain as call_from_plain
from ..crossing import stays, to_plain
from ..forms import FormCall
from ..layer_forms import layer_form, target_of
from ..trt.conversion import ConversionContext
from ..trt.flavor import Flavor
from ..trt.handwritten import Expected, add_layers
from ..trt.handwritten import tensors_of as results_of
from ..trt.request import Failure, Initializer
from .onnx_markers import DOMAIN, Marked, argument_name, result_name


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
        markers = {layer.name: layer for layer in layers if layer.name.startswith(f"{DOMAIN}.call.")}
        for number, marked in self._placed.items():
            call, registration = marked.call, marked.call.registration
            form = layer_form(registration, flavor) if registration is not None else None
            assert form is not None
            names = [argument_name(number, i) for i in range(marked.arguments)]
            names += [result_name(number, i) for i in range(len(marked.results))]
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
