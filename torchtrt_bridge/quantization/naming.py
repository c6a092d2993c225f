"""Names of quantized tensors that stay the same from one capture to the next.

A node's own name follows the symbols of the capture: ``add`` of a fixed shape is ``add_25`` of a dynamic one. So a
tensor is called after the first operator that may take it quantized: ``encoder.layer.0.output.dense/linear``, with
``:1`` after it for the second input of a product.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from torch.fx import Graph, Node

from ..fx_nodes import module_path, operator_name
from .placement import placements


def tensor_names(graph: Graph, is_constant: Callable[[Node], bool]) -> dict[Node, str]:
    """The tensors of ``graph`` that may be quantized, whatever the settings, with their names."""
    names: dict[Node, str] = {}
    taken: collections.Counter[str] = collections.Counter()
    for place in placements(graph, is_constant, attention=True, last_layer=True):
        operator = f"{module_path(place.node)}/{operator_name(place.node)}".removeprefix("/")
        taken[operator] += 1
        count = f".{taken[operator] - 1}" if taken[operator] > 1 else ""
        for index, tensor in enumerate(place.activations):
            names.setdefault(tensor, f"{operator}{count}" + (f":{index}" if index else ""))
    return names
