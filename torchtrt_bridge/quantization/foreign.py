"""Models that were quantized elsewhere, in the operators of :mod:`.graph`: what they compute stays as it is.

* PT2E's results have these operators already.
* QAT and fake-quantized modules leave ``fake_quantize`` operators: an activation's becomes a pair of Q/DQ, a weight is
  stored in the numbers that it was rounded to.
* NVIDIA's ModelOpt leaves ``tensorrt::quantize_op``, with the largest magnitude in place of a scale.
* torchao's ``quantize_`` leaves integers or float8 numbers that are cast and scaled, or ``dequantize_affine``.

TensorRT's quantization is symmetric, and its scales are known when it builds. What is neither is refused by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ..errors import ConversionFailed
from ..fx_nodes import module_path, operator_name
from .calibrating import constant_in
from .formats import FORMATS
from .writing import Writer, tensor_of

aten = torch.ops.aten
_FAKE = ("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine")
_DEFAULTS = (None, None, 8, 0, False, True)  # of ModelOpt's operator
_NARROW = (torch.int8, torch.float8_e4m3fn)


def normalized(program: ExportedProgram) -> ExportedProgram:
    """``program`` with all that is quantized said by Q/DQ operators; ``program`` itself where nothing is, or is so.

    Raises:
        ConversionFailed: a quantization that TensorRT has no form for, with the place in the model.
    """
    return _Normalizer(program).run()


class _Normalizer:
    def __init__(self, program: ExportedProgram):
        self._program, self._writer, self._changed = program, Writer(program), False
        self._is_constant = constant_in(program)

    def run(self) -> ExportedProgram:
        for node in list(self._writer.graph.nodes):
            name = operator_name(node) if node.op == "call_function" else ""
            value = None
            if name in _FAKE:
                value = self._fake(node, per_channel="channel" in name)
            elif name == "quantize_op":
                value = self._modelopt(node)
            elif name == "dequantize_affine":
                value = self._affine(node)
            elif name == "choose_qparams_affine":
                raise _refusal(node, "chooses scales while it runs, and TensorRT's are fixed when it builds")
            elif name == "mul":
                value = self._scaled(node)
            elif name == "_to_copy":
                value = self._cast(node)
            if value is not None:
                node.replace_all_uses_with(value)
                self._changed = True
        if not self._changed:
            return self._program
        self._writer.graph.eliminate_dead_code()
        return self._writer.finish()

    def _fake(self, node: Node, per_channel: bool) -> Node:
        """A tensor that is rounded in place: ``(x, scale, zero point, [axis,] least, largest)``."""
        arguments: tuple[Any, ...] = node.args
        source, scale, zero, *rest = arguments
        axis, least, largest = rest if per_channel else (0, *rest)
        scales = self._number(scale, node).float()
        self._require_symmetric(self._number(zero, node), (least, largest), node)
        if not self._is_constant(source):
            if scales.numel() != 1:
                raise _refusal(node, "has a scale for each channel of an activation, and TensorRT one for all")
            return self._writer.pair(source, scales.item(), (least, largest), torch.int8, node)
        scales = scales if per_channel else scales.reshape(())
        shape = [-1 if dim == axis and per_channel else 1 for dim in range(source.meta["val"].ndim)]
        weight = tensor_of(self._program, source.name).detach().float()
        numbers = (weight / scales.reshape(shape)).round().clamp(least, largest).to(torch.int8)
        return self._writer.dequantized(source, numbers, scales, (least, largest), axis, node)

    def _modelopt(self, node: Node) -> Node:
        """``(x, largest magnitude, bits, bits of the exponent, ...)``; that of a weight may be one for each channel."""
        given: list[Any] = list(node.args)
        source, largest, bits, exponent, *rest = given + list(_DEFAULTS[len(given) :])
        if bits != 8 or exponent not in (0, 4) or rest[0]:
            raise _refusal(
                node, f"has {bits} bits, {exponent} of the exponent, or no sign; int8 and float8 E4M3 can be"
            )
        form = FORMATS["fp8" if exponent else "int8"]
        scales = self._number(largest, node).float() / form.max
        if not self._is_constant(source):
            if scales.numel() != 1:
                raise _refusal(node, "has a scale for each channel of an activation, and TensorRT one for all")
            return self._writer.pair(source, scales.item(), (form.min, form.max), form.dtype, node)
        weight = tensor_of(self._program, source.name).detach().float()
        axis = next((dim for dim, size in enumerate(scales.shape) if size > 1), 0)
        flat = scales.reshape(-1) if scales.numel() > 1 else scales.reshape(())
        numbers = form.quantized(weight / scales)
        return self._writer.dequantized(source, numbers, flat, (form.min, form.max), axis, node)

    def _affine(self, node: Node) -> Node:
        """``(numbers, block size, scale, zero point, dtype, least, largest)`` of torchao."""
        arguments: tuple[Any, ...] = node.args
        source, block, scale, zero, dtype, *limits = arguments
        if not self._is_constant(source) or dtype not in _NARROW:
            raise _refusal(node, "is of an activation, or of another type than int8 and float8")
        if zero is not None:
            self._require_symmetric(self._number(zero, node), None, node)
        least, largest = limits[:2] if len(limits) >= 2 and limits[0] is not None else (-128, 127)
        numbers, scales = tensor_of(self._program, source.name), self._number(scale, node).float()
        split = [dim for dim, (size, width) in enumerate(zip(numbers.shape, block)) if width != size]
        if len(split) == 0:
            scales, axis = scales.reshape(()), 0
        elif len(split) == 1 and block[split[0]] == 1:
            scales, axis = scales.reshape(-1), split[0]
        elif numbers.ndim == 2 and block[0] == 1:
            scales, axis = scales.reshape(len(numbers), -1), 1
        else:
            raise _refusal(node, f"has blocks of {block}; a row's groups are what ONNX and TensorRT have")
        return self._writer.dequantized(
            source, numbers.detach(), scales, (least, largest), axis, node, node.meta["val"].dtype
        )

    def _scaled(self, node: Node) -> Node | None:
        """``cast(weight.t()) * scale``, or ``(x @ cast(weight.t())) * scale``, where it is that."""
        left, right = node.args[:2]
        if not isinstance(left, Node) or not isinstance(right, Node):
            return None
        cast: Any
        product = left if operator_name(left) == "mm" else None
        cast = left if product is None else product.args[1]
        source = self._transposed(cast)
        scale = self._source(right)
        if source is None or scale is None or source.meta["val"].dtype != torch.int8:
            return None
        scales = tensor_of(self._program, scale.name).float().reshape(-1)
        if len(scales) != source.meta["val"].shape[0]:
            return None
        numbers = tensor_of(self._program, source.name).detach()
        weight = self._writer.dequantized(source, numbers, scales, (-128, 127), 0, node, node.meta["val"].dtype)
        value = self._call(aten.t.default, node, left if product is None else cast, weight)
        if product is not None:
            value = self._call(aten.mm.default, node, product, product.args[0], value)
        return value

    def _cast(self, node: Node) -> Node | None:
        """``cast(weight.t())`` of float8 numbers, which are scaled afterwards: torch dequantizes them by one scale
        only."""
        source = self._transposed(node)
        if source is None or source.meta["val"].dtype != torch.float8_e4m3fn:
            return None
        numbers, one = tensor_of(self._program, source.name).detach(), torch.tensor(1.0)
        weight = self._writer.dequantized(source, numbers, one, (-448, 448), 0, node, node.meta["val"].dtype)
        return self._call(aten.t.default, node, node, weight)

    def _transposed(self, node: Any) -> Node | None:
        """The weight of ``cast(weight.t())``, if it is quantized numbers."""
        if not isinstance(node, Node) or operator_name(node) != "_to_copy":
            return None
        source = node.args[0]
        if not isinstance(source, Node) or operator_name(source) != "t":
            return None
        weight = source.args[0]
        narrow = isinstance(weight, Node) and self._is_constant(weight) and weight.meta["val"].dtype in _NARROW
        return weight if narrow else None  # type: ignore[return-value]

    def _source(self, node: Node) -> Node | None:
        """The constant that ``node`` is, or is a view of."""
        while node.op == "call_function" and operator_name(node) in ("view", "reshape", "t"):
            node = node.args[0]  # type: ignore[assignment]
        return node if self._is_constant(node) else None

    def _call(self, target: Any, before: Node, like: Node, *args: Any) -> Node:
        with self._writer.graph.inserting_before(before):
            node = self._writer.graph.call_function(target, args)
        node.meta = {**before.meta, "val": like.meta["val"]}
        return node

    def _number(self, value: Any, node: Node) -> torch.Tensor:
        """A scale or zero point: a number, or a tensor of the program's."""
        if isinstance(value, Node):
            if not self._is_constant(value):
                raise _refusal(node, "computes its scale, and TensorRT's are fixed when it builds")
            return tensor_of(self._program, value.name).detach()
        return torch.tensor(value)

    def _require_symmetric(self, zero: torch.Tensor, limits: tuple[int, int] | None, node: Node) -> None:
        if bool((zero != 0).any()) or (limits is not None and not -128 <= limits[0] < 0 < limits[1] <= 127):
            raise _refusal(node, "is not symmetric, and TensorRT's quantization is: int8 with the zero point 0")


def _refusal(node: Node, why: str) -> ConversionFailed:
    place = module_path(node) or "the top module"
    return ConversionFailed(f"The model's own quantization {operator_name(node)} (in {place}) {why}.")
