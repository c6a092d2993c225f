"""Results whose size depends on the data, made in the largest size that they can have, with the number of rows beside.

TensorRT for RTX has no such results. The operators that make them have a form that gives all rows, the right ones
first, and their number (the built-in converters' :data:`~torchtrt_bridge.converters.sizes.COUNTED`). What follows row
by row runs on all of them; the cut to the right number is the last step, and PyTorch's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from .converters.sizes import COUNTED
from .inlining import inline, mode_of, put_in_place
from .partition import is_assertion, is_number, tensors_of

aten = torch.ops.aten

_BY_ROW = frozenset(
    (aten.select.int, aten.unbind.int, aten.unsqueeze.default, aten.squeeze.dim, aten.permute.default)
    + (aten.transpose.int, aten.t.default, aten.clone.default, aten._to_copy.default, operator.getitem)
)
"""Operators that take each row by itself, as all pointwise ones do."""


class NotByRow(Exception):
    """The operator has no form with all rows, or what follows it depends on how many there are."""


def pad(node: Node) -> list[str]:
    """Put all rows in the place of ``node``, and cuts before the results that follow it, in the node's graph.

    Returns:
        The names of the cuts, and of the number that they read.

    Raises:
        NotByRow: see there; the graph is half changed then.
    """
    symbols = set().union(*map(free_unbacked_symbols, tensors_of(node)))
    if len(symbols) != 1:
        raise NotByRow
    (symbol,) = symbols
    graph = node.graph
    _erase_checks([n for n in graph.nodes if is_number(n) and _axis(n.meta["val"], symbol) is not None])
    followers = [n for n in graph.nodes if n is not node and _axis(n.meta.get("val"), symbol) is not None]
    *rows, count = inline(node, _form_of(node))[0]
    cut_as = put_in_place(node, rows)
    for follower in followers:
        if follower not in cut_as and follower.users:
            cut_as[follower] = follower.meta["val"]
            _follow(follower)
    return _cut(graph, cut_as, count, symbol)


def _form_of(node: Node) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        form = COUNTED.get(node.target)
        found = None if form is None else form(*args, **kwargs)
        if found is None:
            raise NotByRow
        return found

    return call


def _axis(value: Any, symbol: Any) -> int | None:
    """The axis of a tensor (of the first of several) whose size is ``symbol``; 0 for a number made of it."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            for axis, size in enumerate(leaf.shape):
                if symbol in free_unbacked_symbols(size):
                    return axis
        elif isinstance(leaf, (torch.SymInt, torch.SymBool, torch.SymFloat)) and symbol in free_unbacked_symbols(leaf):
            return 0
    return None


def _erase_checks(numbers: list[Node]) -> None:
    """Erase what checks the number of rows, which is right by the way it is counted.

    Raises:
        NotByRow: it is more than checked.
    """
    for number in reversed(numbers):
        for user in list(number.users):
            if not is_assertion(user):
                raise NotByRow
            number.graph.erase_node(user)
        number.graph.erase_node(number)


def _follow(node: Node) -> None:
    """Give ``node`` the value that it has of all rows."""
    tags = getattr(node.target, "tags", ())
    if node.target not in _BY_ROW and torch.Tag.pointwise not in tags:
        raise NotByRow
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with mode_of((args, kwargs)):
        node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]


def _cut(graph: Graph, before: dict[Node, Any], count: Node, symbol: Any) -> list[str]:
    """The results that ``before`` holds, cut to the number of rows last of all."""
    output = graph.output_node()
    results = [n for n in output.all_input_nodes if _axis(before.get(n), symbol) is not None]
    if not results:
        raise NotByRow
    steps = []
    with graph.inserting_before(output):
        size = before[results[0]].shape[_axis(before[results[0]], symbol)]
        number = graph.call_function(aten._local_scalar_dense.default, (count,))
        number.meta["val"] = size
        steps.append(number.name)
        for result in results:
            cut = graph.call_function(aten.slice.Tensor, (result, _axis(before[result], symbol), 0, number))
            cut.meta["val"] = before[result]
            output.replace_input_with(result, cut)
            steps.append(cut.name)
    return steps
