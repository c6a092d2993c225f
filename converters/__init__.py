"""Built-in converters of operators that the ONNX route lacks, a file per family.

Each is the operator's meaning in other operators (its ATen form), written in PyTorch: it holds for every input of the
operator, for dynamic sizes too, and is applied to the captured graph before the ONNX model is made of it. What is here
was seen to fail without it, by the sweep in ``tests/sweep``; each file says how.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch.fx import Graph

_FAMILIES = """
    attention distance elementwise image indexing normalization ordering pooling product reduction scan shape
""".split()


def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Operator overload (``torch.ops.aten.cummax.default``) to the function that says it in other operators."""
    return {operator: function for family in _families() for operator, function in family.DECOMPOSITIONS.items()}


def decompositions_for(graph: Graph) -> dict[Any, Callable[..., Any]]:
    """Those that ``graph`` needs. Some operators are converted only where a call of them has a certain form; then so
    are all its calls in the graph, for a table of decompositions knows operators, not calls."""
    table = decompositions()
    conditions = {op: needed for family in _families() for op, needed in getattr(family, "ONLY_WHERE", {}).items()}
    return {
        node.target: table[node.target]
        for node in graph.nodes
        if node.target in table and (node.target not in conditions or conditions[node.target](node))
    }


@functools.cache
def _families() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(f".{name}", __name__) for name in _FAMILIES)
