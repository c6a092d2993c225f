"""A network written by hand: the user's function called, its results marked, the signature completed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from .backends.interface import output_names
from .network_inputs import Given
from .signature import Signature, TensorSpec
from .structure import Node, Unstorable, describe
from .trt.conversion import ConversionContext
from .trt.flavor import flavor
from .trt.handwritten import WrongResult, add_layers, tensor_of


class Writer:
    """Fills TensorRT's network: what a build request takes in the place of an ONNX model.

    Attributes:
        signature: with the results, once the network is there.
        precision: the narrowest float that one of its layers makes.
    """

    def __init__(self, build: Callable[..., Any], given: Given, interface: Signature):
        self._build, self._given = build, given
        self.signature = interface
        self.precision = "fp32"

    def __call__(self, trt: Any, network: Any) -> Any:
        """Returns what must live until the plan is there."""
        ctx = ConversionContext(flavor(), network)
        tensors = [
            network.add_input(spec.name, ctx.dtype(spec.dtype), [-1 if isinstance(n, str) else n for n in spec.shape])
            for spec in self.signature.inputs
        ]

        def build(ctx: ConversionContext) -> Any:
            return self._given.call(self._build, ctx, tensors=tensors)

        with ctx.scope("", getattr(self._build, "__name__", "network")):
            results, node = add_layers(ctx, build, (), {}, lambda value: _results(ctx, value))
        self._mark(ctx, results, node)
        kinds = {network.get_layer(i).get_output_type(0) for i in range(network.num_layers)}
        self.precision = "fp16" if trt.float16 in kinds else "bf16" if trt.bfloat16 in kinds else "fp32"
        return ctx

    def _mark(self, ctx: ConversionContext, results: Mapping[str, Any], node: Node) -> None:
        """Make ``results`` those of the network and the signature. One may be an input, or another one too: each gets
        a layer of its own."""
        specs = tuple(
            TensorSpec(name, ctx.name_of(tensor.dtype), tuple("?" if n < 0 else n for n in tensor.shape))
            for name, tensor in results.items()
        )
        self.signature = dataclasses.replace(self.signature, outputs=specs, result=node)
        for tensor, wire in zip(results.values(), output_names(self.signature)):
            copy = ctx.network.add_identity(tensor)
            copy.name = f"{wire}/identity"
            copy.get_output(0).name = wire
            ctx.network.mark_output(copy.get_output(0))


def _results(ctx: ConversionContext, value: Any) -> tuple[dict[str, Any], Node]:
    """The tensors of ``value`` by name, and its structure."""
    found: dict[str, Any] = {}

    def leaf(path: str, item: Any) -> Node | None:
        if item is None or isinstance(item, (tuple, list, Mapping, bool, int, float, str)):
            return None
        name = path or "output"
        found[name] = tensor_of(ctx, item, f"the result {name!r}")
        ctx.name_of(found[name].dtype)
        return {"output": len(found) - 1}

    try:
        node = describe(value, leaf)
    except (Unstorable, TypeError) as error:
        raise WrongResult(f"the result holds something that no engine can return: {error}") from None
    if not found:
        raise WrongResult(f"the result is {value!r}, without a tensor in it")
    return found, node
