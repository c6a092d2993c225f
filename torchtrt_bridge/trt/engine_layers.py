"""The layers of a built engine, after fusion, with the types that they compute in.

TensorRT says them twice in the same words: in the verbose log at the end of a build with detailed profiling verbosity,
for which no GPU is needed, and through the inspector of a deserialized engine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

LOG_START = "Layers:"
"""How the message of the verbose log that lists the layers begins."""

_ORIGIN = re.compile("(\\[[^\x1e\x1f]*\\])")  # a layer of the network that one layer was made from

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[.*Metadata: (?P<metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: .*?Dimensions: \[(?P<shape>[-\d,]*)\].*?(?:Format/)?Datatype: (?P<dtype>[^,}]*)")
_TYPES = (
    ("int8", ("INT8",)),
    ("int4", ("INT4",)),
    ("fp4", ("FP4", "E2M1")),
    ("fp8", ("FP8", "E4M3")),
    ("bf16", ("BF16", "BFLOAT16")),
    ("fp16", ("HALF", "FP16")),
    ("fp32", ("FLOAT", "FP32", "TF32")),
)
_KINDS = ("gemm", "matrixmultiply", "conv", "correlation", "fusion", "attention", "mha")
_GENERATED = re.compile(r"_gemm_|_mha_|__myl_.*(Fc|Gemm|Mha)")  # names of kernels that were generated for one engine


@dataclasses.dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Args:
        name, kind: in TensorRT's words: ``"fc/MatMul_myl0_2"``, ``"gemm"``.
        precision: of its operands, the wider of the two where they differ: ``"int8"``; empty where TensorRT names none.
        metadata: the layers of the network that it was made from, each as their ``metadata`` says.
    """

    name: str
    kind: str
    precision: str
    metadata: tuple[str, ...]

    @property
    def multiplies(self) -> bool:
        """Whether it may be a matrix product or a convolution, alone or with what was fused into it."""
        kind = self.kind.lower().replace("_", "")
        return any(part in kind for part in _KINDS) or (kind == "kgen" and _GENERATED.match(self.name) is not None)


def from_log(text: str) -> list[EngineLayer]:
    """The layers that a message of the build's verbose log lists; those that it says in another form are left out."""
    found = []
    for line in text.splitlines():
        if (match := _LINE.match(line)) is not None:
            inputs, constants = (_tensors(match[part] or "") for part in ("inputs", "constants"))
            metadata = tuple(_ORIGIN.findall(match["metadata"]))
            found.append(EngineLayer(match["name"], match["kind"], _precision(inputs, constants), metadata))
    return found


def from_inspector(text: str) -> list[EngineLayer]:
    """The layers that an engine inspector lists as JSON; those without details (names alone) are left out."""
    try:
        layers = json.loads(text, strict=False).get("Layers", [])
    except (ValueError, AttributeError):  # TensorRT writes names as they are, quotes among them
        return []
    return [_from_json(layer) for layer in layers if isinstance(layer, Mapping)]


def _from_json(layer: Mapping[str, Any]) -> EngineLayer:
    def tensors(key: str) -> list[tuple[str, list[int]]]:
        given = [item for item in layer.get(key) or () if isinstance(item, Mapping)]
        types = [_type(item.get("Datatype") or item.get("Format/Datatype")) for item in given]
        return [(kind, item.get("Dimensions") or []) for kind, item in zip(types, given)]

    weights = layer.get("Weights")
    constants = tensors("Constants")
    if isinstance(weights, Mapping):  # TensorRT 10's own kernels
        constants.append((_type(weights.get("Type")), [2, int(weights.get("Count") or 0)]))  # a matrix of some shape
    metadata = tuple(_ORIGIN.findall(str(layer.get("Metadata") or "")))
    return EngineLayer(
        str(layer.get("Name", "")), str(layer.get("LayerType", "")), _precision(tensors("Inputs"), constants), metadata
    )


def _tensors(text: str) -> list[tuple[str, list[int]]]:
    """Type and shape of each tensor in a list of the log."""
    return [
        (_type(match["dtype"]), [int(size) for size in match["shape"].split(",") if size])
        for match in _TENSOR.finditer(text)
    ]


def _type(text: Any) -> str:
    """The precision in TensorRT's name of a data type or format; empty where it is none of ours."""
    upper = str(text).upper()
    return next((name for name, marks in _TYPES if any(mark in upper for mark in marks)), "")


def _precision(inputs: Sequence[tuple[str, list[int]]], constants: Sequence[tuple[str, list[int]]]) -> str:
    """The wider type of a product's two operands: the first input, and the largest constant matrix or, where there is
    none, the second input."""
    matrices = [tensor for tensor in constants if sum(size != 1 for size in tensor[1]) > 1]
    weight = max(matrices, key=lambda tensor: math.prod(tensor[1]), default=None)
    operands = [*inputs[:1], *([weight] if weight is not None else inputs[1:2])]
    order = [name for name, _ in _TYPES]
    return max((kind for kind, _ in operands if kind), key=order.index, default="")
