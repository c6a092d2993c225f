"""Built-in converters of operators that the ONNX route lacks, a file per family.

Each is the operator's meaning in other operators (its ATen form), written in PyTorch: it holds for every input of the
operator, for dynamic sizes too, and is applied to the captured graph before the ONNX model is made of it. What is here
was seen to fail without it, by the sweep in ``tests/sweep``; each file says how.

A family has ``DECOMPOSITIONS``, operators and their forms, and ``ONLY_WHERE``, for some of them a predicate on a call's
node. (Converters for every route, with TensorRT forms or before precision is decided, are registered in files that
``_REGISTERING`` lists, by ``@torchtrt_bridge.converter`` like anybody's.)
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch._ops import OpOverload
from torch.fx import Node

if TYPE_CHECKING:
    from torchtrt_bridge.registry import Registration

_FAMILIES = """
    attention convolution distance elementwise fourier image indexing linear_algebra losses normalization ordering
    pooling product reduction sampling scan scattering shape sorting special whole_numbers
""".split()
_REGISTERING = ["tensorrt_layers"]


def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Operator overload (``torch.ops.aten.cummax.default``), or the name of one that another package registers
    (``"torchvision::roi_align"``), to the function that says it in other operators."""
    return {operator: function for family in _families() for operator, function in family.DECOMPOSITIONS.items()}


def form_of(node: Node) -> Callable[..., Any] | None:
    """What says the call ``node`` in other operators; None where no converter takes it. Some operators are converted
    only where a call of them has a certain form."""
    name = node.target.name() if isinstance(node.target, OpOverload) else None
    found, condition = _table().get(node.target) or _table().get(name) or (None, None)
    return found if condition is None or condition(node) else None


@functools.cache
def _table() -> dict[Any, tuple[Callable[..., Any], Callable[[Node], bool] | None]]:
    conditions = {op: needed for family in _families() for op, needed in getattr(family, "ONLY_WHERE", {}).items()}
    return {operator: (form, conditions.get(operator)) for operator, form in decompositions().items()}


def register() -> None:
    """Import the files whose converters register themselves; for the registry, once."""
    for name in _REGISTERING:
        importlib.import_module(f".{name}", __name__)


@functools.cache
def registrations() -> tuple[Registration, ...]:
    """The decompositions as the registry lists them. (A ``when`` of theirs asks a node of a graph, not a call.)"""
    from torchtrt_bridge.registry import Definition, Registration
    from torchtrt_bridge.registry.target import Target

    return tuple(
        Registration(
            Target("operator", operator) if isinstance(operator, str) else Target.of(operator),
            Definition.of(function),
            aten=function,
            when=getattr(family, "ONLY_WHERE", {}).get(operator),
            routes=("onnx",),
            reason=_reason(family),
            source="built-in",
        )
        for family in _families()
        for operator, function in family.DECOMPOSITIONS.items()
    )


def _reason(family: ModuleType) -> str:
    """What the file says of why it exists: from "Without ..." to the end of the paragraph."""
    text = re.sub(r"[ ]*\n[ ]*", "\n", family.__doc__ or "")
    found = re.search(r"Without th(?:is|ese):? (.+?)(?:\n\n|\Z)", text, re.DOTALL)
    reason = " ".join((found[1] if found else text.partition("\n\n")[0]).split())
    return reason[:1].upper() + reason[1:]


@functools.cache
def _families() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(f".{name}", __name__) for name in _FAMILIES)
