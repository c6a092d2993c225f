"""The matrix and convolution work of a network, layer by layer: how much, in which precision by the network's own
types, and in which the engine was built.

A strongly typed network is a contract: TensorRT computes each layer in the types of its tensors, although the kernel
that it ends in may read others and cast them first. What the contract leaves open is what becomes of quantization: an
int8 product is a product of two dequantized tensors, which TensorRT may fuse into an int8 kernel or compute as it
stands. There the built engine's layers (:mod:`.engine_layers`) have the last word, where they say which layer of the
network they were made from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .engine_layers import EngineLayer

_log = logging.getLogger("torchtrt_bridge")

_NAMES = {
    "FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4", "FP4": "fp4",
}  # fmt: skip
_BY_WIDTH = ("fp4", "int4", "int8", "fp8", "bf16", "fp16", "fp32")
_MOVES = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY", "SLICE", "CONCATENATION")


@dataclasses.dataclass(frozen=True)
class Work:
    """One matrix product, convolution or attention of a network.

    Args:
        layer: the layer's name, ``"encoder.0.up/linear"``.
        kind: ``"matrix_multiply"``, ``"convolution"``, ``"deconvolution"``, ``"einsum"`` or ``"attention"``.
        flops: floating point operations of a call at the profile's usual sizes; the body of a loop counts once.
        typed: the precision that the network's types ask for; int8 where both operands are dequantized from it.
        built: the precision of the kernel that the engine has for it; None where none is known to be.
        hindrance: what keeps the network's types from being lower, where that shows.
        metadata: what the engine's layers made from it carry.
    """

    layer: str
    kind: str
    flops: int
    typed: str
    built: str | None = None
    hindrance: str = ""
    metadata: str = ""

    @property
    def place(self) -> str:
        """The name without what Torch-TensorRT puts before it:
        ``"[MATRIX_MULTIPLY]-[aten_ops.linear]-[encoder.0/linear]"``."""
        return self.layer.rpartition("]-[")[2].removesuffix("]") if self.layer.startswith("[") else self.layer


def label(network: Any) -> None:
    """Give every layer of ``network`` that has none a metadata of its own, so that it is found again in the engine."""
    for layer in map(network.get_layer, range(network.num_layers)):
        if hasattr(layer, "metadata") and not layer.metadata:
            layer.metadata = f"[Layer: {layer.name}]"


def work_of(trt: Any, network: Any, profile: Mapping[str, Sequence[Sequence[int]]]) -> list[Work]:
    """The work in ``network``, an ``INetworkDefinition`` that is not built any more: its dynamic inputs take the usual
    sizes of ``profile``."""
    with contextlib.suppress(Exception):  # a network that refuses has sizes of -1, which count as 1
        for tensor in map(network.get_input, range(network.num_inputs)):
            if tensor.name in profile:
                tensor.shape = tuple(profile[tensor.name][1])
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    # an attention is known by the layer of its result
    readers = {layer.get_input(0).name: layer for layer in layers if layer.type.name == "ATTENTION_OUTPUT"}
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    found = []
    for layer in layers:
        counted = _COUNTED.get(layer.type.name)
        if counted is None:
            continue
        try:
            flops = counted(trt, layer)
        except Exception as error:  # a layer that TensorRT itself cannot size: nothing is known of its work
            _log.info("the work of the layer %s is not counted: %s", layer.name, error)
            continue
        operands = [_operand(makers, tensor) for tensor in _factors(layer)]
        if not all(precision in _BY_WIDTH for precision, _ in operands):
            continue  # a product of integers
        hindrance = next((reason for _, reason in operands if reason), "")
        quantized = {precision for precision, _ in operands}
        if len(quantized) > 1:
            hindrance = hindrance or f"its operands are {' and '.join(sorted(quantized))}"
        typed = max((precision for precision, _ in operands), key=_BY_WIDTH.index)
        kind = layer.type.name.lower().removesuffix("_input")
        named = readers.get(layer.get_output(0).name, layer) if kind == "attention" else layer
        found.append(Work(named.name, kind, flops, typed, None, hindrance, getattr(named, "metadata", "") or ""))
    return found


def as_built(work: Sequence[Work], engine: Sequence[EngineLayer]) -> list[Work]:
    """``work`` with the precision of the engine's kernel for each, where one says what it was made from."""
    kernels: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for layer in engine:
        if layer.multiplies and layer.precision:
            for origin in layer.metadata:
                kernels.setdefault(origin, []).append(layer.precision)
            names[layer.name.rpartition("_myl")[0] or layer.name] = layer.precision
    found = []
    for item in work:
        made = [names[item.layer]] if item.layer in names else kernels.get(item.metadata, [])
        quantized = _BY_WIDTH.index(item.typed) < _BY_WIDTH.index("bf16")
        kernel = max(made, key=_BY_WIDTH.index) if quantized and made else item.typed
        found.append(dataclasses.replace(item, built=kernel if made else item.built))
    return found


def _factors(layer: Any) -> list[Any]:
    """The tensors that are multiplied; a convolution's weights are one only where they are no plain constant."""
    tensors = [layer.get_input(i) for i in range(layer.num_inputs)]
    return [tensor for tensor in tensors[:2] if tensor is not None]


def _operand(makers: Mapping[str, Any], tensor: Any) -> tuple[str, str]:
    """The precision that ``tensor`` is multiplied in, and what stands between it and a lower one."""
    own, hindrance = _NAMES.get(tensor.dtype.name, tensor.dtype.name.lower()), ""
    while (maker := makers.get(tensor.name)) is not None:
        kind = maker.type.name
        if kind == "DEQUANTIZE":
            quantized = maker.get_input(0).dtype.name
            return _NAMES.get(quantized, own), hindrance
        if kind == "CAST":
            hindrance = "a cast stands between its quantized operand and the product"
        elif kind not in _MOVES:
            break
        tensor = maker.get_input(0)
    return own, ""


def _matrix_multiply(trt: Any, layer: Any) -> int:
    layer.__class__ = trt.IMatrixMultiplyLayer  # the bindings hand out a plain ILayer
    shape = _sizes(layer.get_input(0))
    shared = shape[-2] if layer.op0 == trt.MatrixOperation.TRANSPOSE else shape[-1]
    return 2 * math.prod(_sizes(layer.get_output(0))) * shared


def _convolution(trt: Any, layer: Any) -> int:
    layer.__class__ = trt.IConvolutionLayer
    window = math.prod(layer.kernel_size_nd) * _sizes(layer.get_input(0))[1] // layer.num_groups
    return 2 * math.prod(_sizes(layer.get_output(0))) * window


def _deconvolution(trt: Any, layer: Any) -> int:
    layer.__class__ = trt.IDeconvolutionLayer
    window = math.prod(layer.kernel_size_nd) * layer.num_output_maps // layer.num_groups
    return 2 * math.prod(_sizes(layer.get_input(0))) * window


def _einsum(trt: Any, layer: Any) -> int:
    layer.__class__ = trt.IEinsumLayer
    terms = layer.equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        sizes.update(zip(reversed(term.replace(".", "")), reversed(_sizes(layer.get_input(index)))))
    return 2 * math.prod(sizes.values())


def _attention(trt: Any, layer: Any) -> int:
    query, key = (_sizes(layer.get_input(i)) for i in range(2))
    return 4 * math.prod(query) * key[-2]  # two products: the scores, and their sum of the values


def _sizes(tensor: Any) -> list[int]:
    return [max(1, size) for size in tensor.shape]


_COUNTED = {
    "MATRIX_MULTIPLY": _matrix_multiply,
    "CONVOLUTION": _convolution,
    "DECONVOLUTION": _deconvolution,
    "EINSUM": _einsum,
    "ATTENTION_INPUT": _attention,
}
