"""Q/DQ pairs written into a captured program.

An activation gets one pair, which all its quantized readers share; the others read the tensor itself. A weight is
stored quantized, with its scales beside it, and only dequantized in the graph. Scales are float32 and outlive every
cast; what is dequantized has the dtype that it had before, until :mod:`torchtrt_bridge.casting` decides on another.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Node

from ..fx_nodes import retyped
from ..program_graph import rebuild
from .formats import Format
from .graph import FLOAT8
from .placement import Placement
from .weights import quantized_weight

_ops = torch.ops.quantized_decomposed


class Writer:
    """Writes quantization into a copy of ``program``; :meth:`finish` gives the new one."""

    def __init__(self, program: ExportedProgram):
        self._program = program
        self.graph = copy.deepcopy(program.graph)
        self.nodes = {node.name: node for node in self.graph.nodes}
        self._specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._added: dict[str, list[tuple[InputSpec, torch.Tensor]]] = {}
        self._pairs: dict[tuple[Node, Format], Node] = {}
        self._weights: dict[tuple[Node, int, Format, int], Node] = {}

    def quantize(
        self,
        place: Placement,
        form: Format,
        amax: Mapping[tuple[Node, Format], float],
        divisors: Mapping[Node, torch.Tensor],
    ) -> None:
        """Quantize what ``place``, of the original graph, takes.

        Args:
            amax: the range of each activation in each format.
            divisors: what the channels of an activation are divided by before, and the weight's columns multiplied by.
        """
        reader = self.nodes[place.node.name]
        for tensor in place.activations:
            source = self.nodes[tensor.name]
            key = (source, form)
            if key not in self._pairs:
                smooth = self._divided(source, place, divisors[tensor]) if tensor in divisors else source
                scale = amax[tensor, form] / form.max or 1.0
                self._pairs[key] = self.pair(smooth, scale, (form.min, form.max), form.dtype, reader)
            reader.replace_input_with(source, self._pairs[key])
        if place.weight is not None:
            self.quantize_weight(place, form, factor=divisors.get(place.activations[0]))

    def quantize_weight(
        self, place: Placement, form: Format, group: int | None = None, factor: torch.Tensor | None = None
    ) -> None:
        """Store the weight of ``place`` in ``form``: a scale for each output channel, one for the whole weight in fp8,
        or one for each ``group`` numbers in a row. Its columns are multiplied by ``factor`` before."""
        assert place.weight is not None
        reader, weight = self.nodes[place.node.name], self.nodes[place.weight.name]
        key = (weight, place.axis, form, id(factor))
        if key not in self._weights:
            self._weights[key] = self._stored(weight, place.axis, form, group, factor, reader)
        reader.replace_input_with(weight, self._weights[key])

    def finish(self) -> ExportedProgram:
        """The program with the quantization in it. Weights that nobody reads any more are gone."""
        program = self._program
        unread = [self.nodes[name] for name in self._added if not self.nodes[name].users]
        gone = {node.name for node in unread}
        for node in unread:
            self.graph.erase_node(node)
        specs: list[InputSpec] = []
        tensors: dict[str, torch.Tensor] = {}
        for spec in program.graph_signature.input_specs:
            for added, tensor in self._added.get(spec.arg.name, ()):
                assert added.target is not None
                specs.append(added)
                tensors[added.target] = torch.nn.Parameter(tensor, requires_grad=False)
            if spec.arg.name not in gone:
                specs.append(spec)
        return rebuild(program, self.graph, {}, specs, tensors)

    def pair(self, source: Node, scale: float, limits: tuple[int, int], dtype: torch.dtype, reader: Node) -> Node:
        """The dequantized value of ``source``, quantized just after it is made."""
        numbers = (scale, 0, *limits, dtype)
        value = source.meta["val"]
        with self.graph.inserting_before(_after(source)):
            float8 = dtype == torch.float8_e4m3fn
            target = FLOAT8 if float8 else _ops.quantize_per_tensor.default
            given = (source, scale) if float8 else (source, *numbers)
            quantized = self.graph.create_node("call_function", target, given, name=f"{source.name}_quantized")
            result = self.graph.create_node(
                "call_function",
                _ops.dequantize_per_tensor.default,
                (quantized, *numbers),
                {"out_dtype": value.dtype},
                name=f"{source.name}_dequantized",
            )
        _describe(quantized, source, dtype, reader)
        _describe(result, source, value.dtype, reader)
        return result

    def _divided(self, source: Node, place: Placement, divisor: torch.Tensor) -> Node:
        """``source`` with its channels divided, by a product with a parameter beside the weight."""
        assert place.weight is not None
        reader, weight = self.nodes[place.node.name], self.nodes[place.weight.name]
        value = source.meta["val"]
        factor = self._parameter(weight, "smoothing", (1 / divisor).to(value.dtype))
        with self.graph.inserting_before(_after(source)):
            node = self.graph.create_node(
                "call_function", torch.ops.aten.mul.Tensor, (source, factor), name=f"{source.name}_smooth"
            )
        _describe(node, source, value.dtype, reader)
        return node

    def _stored(
        self, weight: Node, axis: int, form: Format, group: int | None, factor: torch.Tensor | None, reader: Node
    ) -> Node:
        """The dequantized value of a weight that is stored quantized."""
        tensor = tensor_of(self._program, weight.name)
        tensor = tensor if factor is None else tensor.detach().float() * factor
        numbers, scales = quantized_weight(tensor, form, axis, group)
        return self.dequantized(weight, numbers, scales, (form.min, form.max), axis, reader)

    def dequantized(
        self,
        weight: Node,
        numbers: torch.Tensor,
        scales: torch.Tensor,
        limits: tuple[int, int],
        axis: int,
        reader: Node,
        dtype: torch.dtype | None = None,
    ) -> Node:
        """The value, before ``reader``, of ``numbers`` that are stored beside the parameter ``weight``.

        Args:
            scales: float32; one for all (``[]``), for each index of ``axis``, or, of a matrix, for each group in a row.
            limits: of the numbers.
            dtype: of the value; None: that of ``weight``.
        """
        dtype = dtype or weight.meta["val"].dtype
        stored = self._parameter(weight, "quantized", numbers)
        kind = (*limits, numbers.dtype)
        operator, kwargs = _ops.dequantize_per_channel.default, {"out_dtype": dtype}
        arguments: tuple[Any, ...]
        if not scales.ndim:
            operator, arguments = _ops.dequantize_per_tensor.default, (stored, scales.item(), 0, *kind)
        elif scales.ndim == 1:
            arguments = (stored, self._parameter(weight, "scale", scales), None, axis, *kind)
        else:
            operator, kwargs = _ops.dequantize_per_channel_group.default, {}
            group = numbers.shape[1] // scales.shape[1]
            arguments = (stored, self._parameter(weight, "scale", scales), None, *kind, group, dtype)
        with self.graph.inserting_before(reader):
            result = self.graph.create_node(
                "call_function", operator, arguments, kwargs, name=f"{weight.name}_dequantized"
            )
        _describe(result, weight, dtype, reader)
        return result

    def _parameter(self, weight: Node, what: str, tensor: torch.Tensor) -> Node:
        """A new parameter beside ``weight``."""
        added = self._added.setdefault(weight.name, [])
        target = f"{self._specs[weight.name].target}_{what}"
        taken = sum(spec.target.startswith(target) for spec, _ in added if spec.target is not None)
        target = f"{target}_{taken}" if taken else target
        with self.graph.inserting_before(weight):
            node = self.graph.placeholder(f"{weight.name}_{what}")
        node.meta = {"val": weight.meta["val"].fake_mode.from_tensor(tensor, static_shapes=True)}
        added.append((InputSpec(InputKind.PARAMETER, TensorArgument(node.name), target), tensor))
        return node


def tensor_of(program: ExportedProgram, placeholder: str) -> torch.Tensor:
    """The parameter, buffer or constant that a placeholder of the program's graph stands for."""
    spec = next(spec for spec in program.graph_signature.input_specs if spec.arg.name == placeholder)
    assert spec.target is not None
    holder: Any = program.state_dict if spec.target in program.state_dict else program.constants
    return holder[spec.target]


def _after(node: Node) -> Node:
    """The first node after ``node`` before which an operator may stand."""
    after = node.next
    while after.op == "placeholder":
        after = after.next
    return after


def _describe(node: Node, like: Node, dtype: torch.dtype, reader: Node) -> None:
    """The meta of a new node of the shape of ``like``, in the module of who reads it."""
    node.meta = {key: reader.meta[key] for key in ("nn_module_stack", "stack_trace") if key in reader.meta}
    node.meta["val"] = retyped(like.meta["val"], dtype)
