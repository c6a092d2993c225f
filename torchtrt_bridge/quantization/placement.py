"""Which tensors of a graph are quantized: the placements that TensorRT fuses into one layer.

* Both sides of convolutions and linear layers: the input, one scale for all of it, and the weight, a scale for each
  output channel. Biases stay as they are.
* Where asked for, both sides of products of two activations (attention).
* Of a sum that follows a convolution, the other side (a residual block's shortcut), so that the sum and the activation
  after it are part of the convolution's layer. Not in transformers: there the sum is the residual stream, which needs
  its precision, and a matrix product's layer takes no such sum.
* Nothing else: no embeddings, norms or activations, and, unless asked for, not the layers that make the results.

Batch normalization is folded into convolutions before (:func:`torchtrt_bridge.precision.fold_batch_norm`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch.fx import Graph, Node

from ..fx_nodes import operator_name

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
PRODUCTS = frozenset({"matmul", "bmm", "mm"})
LINEAR = frozenset({"linear", "addmm", *PRODUCTS})


@dataclasses.dataclass(frozen=True)
class Placement:
    """One operator whose inputs are quantized.

    Args:
        node: the operator.
        activations: the inputs that depend on the model's.
        weight: the input that is a parameter, if any.
        axis: of the weight's output channels.
    """

    node: Node
    activations: tuple[Node, ...]
    weight: Node | None = None
    axis: int = 0


def placements(
    graph: Graph,
    is_constant: Callable[[Node], bool],
    *,
    attention: bool = False,
    last_layer: bool = False,
    wanted: Callable[[Node], bool] = lambda node: True,
) -> list[Placement]:
    """The operators of ``graph`` to quantize, in order.

    Args:
        is_constant: whether a node is a parameter or buffer.
        attention: products of two activations too.
        last_layer: the layers that make the results too.
        wanted: what else decides on an operator.
    """
    last = set() if last_layer else last_layers(graph, is_constant)
    found = []
    for node in graph.nodes:
        place = _placement(node, is_constant)
        if place is None or node in last or not wanted(node) or (place.weight is None and not attention):
            continue
        found.append(place)
    chosen = {place.node for place in found}
    found += [sum_ for sum_ in (_residual(node, chosen) for node in graph.nodes) if sum_ is not None]
    order = {node: index for index, node in enumerate(graph.nodes)}
    return sorted(found, key=lambda place: order[place.node])


def last_layers(graph: Graph, is_constant: Callable[[Node], bool]) -> set[Node]:
    """For each result of the model, the last matrix product or convolution that it depends on."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    output = next(iter(reversed(graph.nodes)))
    found = set()
    for result in output.all_input_nodes:
        layers = [node for node in _ancestors(result) if _placement(node, is_constant) is not None]
        found.update([max(layers, key=order.__getitem__)] if layers else [])
    return found


def _ancestors(node: Node) -> Iterator[Node]:
    seen, waiting = {node}, [node]
    while waiting:
        node = waiting.pop()
        yield node
        sources = [source for source in node.all_input_nodes if source not in seen]
        seen.update(sources)
        waiting.extend(sources)


def _placement(node: Node, is_constant: Callable[[Node], bool]) -> Placement | None:
    """How ``node`` is quantized, if it can be."""
    name = operator_name(node) if node.op == "call_function" else ""
    if name not in CONVOLUTIONS | LINEAR or not _is_float(node):
        return None
    left, right = node.args[1:3] if name == "addmm" else node.args[:2]
    assert isinstance(left, Node) and isinstance(right, Node)
    if is_constant(left):
        return None
    if not is_constant(right):
        return Placement(node, (left, right)) if name in PRODUCTS else None
    if name == "addmm" or name in PRODUCTS:
        if right.meta["val"].ndim != 2:
            return None
        return Placement(node, (left,), right, axis=1)
    return Placement(node, (left,), right, axis=0)


def _residual(node: Node, chosen: set[Node]) -> Placement | None:
    """The sum of a residual block after a convolution: its shortcut is quantized."""
    if node.op != "call_function" or operator_name(node) not in ("add", "add_") or len(node.args) < 2:
        return None
    left, right = node.args[:2]
    if not (isinstance(left, Node) and isinstance(right, Node)) or node.kwargs.get("alpha", 1) != 1:
        return None
    if str(left.meta["val"].shape) != str(right.meta["val"].shape):
        return None
    for convolution, shortcut in ((left, right), (right, left)):
        fused = convolution in chosen and operator_name(convolution) in CONVOLUTIONS
        if fused and list(convolution.users) == [node] and convolution is not shortcut:
            return Placement(node, (shortcut,))
    return None


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
