"""Results whose size depends on the data, made in the largest size that they can have, with the number of rows beside.

TensorRT for RTX has no such results. The operators that make them have a form that gives all rows, the right ones
first, and their number (the built-in converters' :data:`~torchtrt_bridge.converters.sizes.COUNTED`). What follows row
by row runs on all of them; the cut to the right number is the last step, and PyTorch's.
"""

from __future__ import annotations

import contextlib
import operator
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from .converters.sizes import COUNTED
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
    cut_as, count = _put_in_place(node)
    for follower in followers:
        if follower not in cut_as and follower.users:
            cut_as[follower] = follower.meta["val"]
            _follow(follower)
    return _cut(graph, cut_as, count, symbol)


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


def _put_in_place(node: Node) -> tuple[dict[Node, Any], Node]:
    """Replace ``node`` by its form: the nodes of its results with what they were before, and the number of rows."""
    *rows, count = _inlined(node)
    before: dict[Node, Any] = {}
    if isinstance(node.meta["val"], (tuple, list)):
        for part in list(node.users):
            row = rows[part.args[1]]  # type: ignore[index]
            before[row] = part.meta["val"]
            part.replace_all_uses_with(row)
            node.graph.erase_node(part)
    else:
        before[rows[0]] = node.meta["val"]
        node.replace_all_uses_with(rows[0])
    node.graph.erase_node(node)
    return before, count


def _inlined(node: Node) -> tuple[Node, ...]:
    """The nodes of the form of ``node``, traced over its own arguments and put before it."""
    form = COUNTED.get(node.target)
    if form is None:
        raise NotByRow
    given = node.all_input_nodes

    def call(*values: Any) -> Any:
        known = dict(zip(given, values))
        args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
        found = form(*args, **kwargs)
        if found is None:
            raise NotByRow
        return found

    values = [n.meta["val"] for n in given]
    with _mode(values):
        traced = make_fx(call)(*values).graph
    traced.eliminate_dead_code()
    places = dict(zip(traced.find_nodes(op="placeholder"), given))
    with node.graph.inserting_before(node):
        results = node.graph.graph_copy(traced, places)
    inherited = {key: value for key, value in node.meta.items() if key in ("nn_module_stack", "stack_trace")}
    for copied in places.values():
        if copied not in given:
            copied.meta.update(inherited)
    return tuple(results)  # type: ignore[arg-type]


def _follow(node: Node) -> None:
    """Give ``node`` the value that it has of all rows."""
    tags = getattr(node.target, "tags", ())
    if node.target not in _BY_ROW and torch.Tag.pointwise not in tags:
        raise NotByRow
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with _mode((args, kwargs)):
        node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]


def _mode(values: Any) -> Any:
    """The mode that the sizes in ``values`` belong to."""
    return detect_fake_mode(pytree.tree_leaves(values)) or contextlib.nullcontext()


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
