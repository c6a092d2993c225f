"""One call in a program's graph replaced by a function of its arguments, traced over what is known of them."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.fx.traceback import NodeSource
from torch.utils import _pytree as pytree


def replace(node: Node, function: Callable[..., Any]) -> list[Node]:
    """Put ``function`` of the arguments of ``node`` in its place, for all who read it. Returns the new nodes."""
    results, made = inline(node, function)
    put_in_place(node, results)
    return made


def put_in_place(node: Node, results: list[Node]) -> dict[Node, Any]:
    """Let the readers of ``node`` read ``results``, one for each of its own. Returns what each was before."""
    before: dict[Node, Any] = {}
    if isinstance(node.meta["val"], (tuple, list)):
        for part in list(node.users):
            assert part.target is operator.getitem
            row = results[part.args[1]]  # type: ignore[index]
            before[row] = part.meta["val"]
            part.replace_all_uses_with(row)
            node.graph.erase_node(part)
    else:
        before[results[0]] = node.meta["val"]
        node.replace_all_uses_with(results[0])
    node.graph.erase_node(node)
    return before


def inline(node: Node, function: Callable[..., Any]) -> tuple[list[Node], list[Node]]:
    """The results of ``function`` of the arguments of ``node``, a flat list, and all nodes that were put before it.

    Operators that torch makes of others stay what they are, as in a captured program, unless ``function.spelled_out``.
    """
    given = node.all_input_nodes

    def call(*values: Any) -> list[Any]:
        known = dict(zip(given, values))
        args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
        return pytree.tree_leaves(function(*args, **kwargs))

    values = [n.meta["val"] for n in given]
    with mode_of(values or node.meta["val"]), torch.no_grad():
        traced = make_fx(call, pre_dispatch=not getattr(function, "spelled_out", False))(*values).graph
    traced.eliminate_dead_code()
    places = dict(zip(traced.find_nodes(op="placeholder"), given))
    with node.graph.inserting_before(node):
        results = node.graph.graph_copy(traced, places)
    inherited = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
    made = [copied for copied in places.values() if copied not in given]
    for copied in made:
        copied.meta.update(inherited, from_node=[NodeSource(node, "inline")])
    return list(results), made  # type: ignore[arg-type]


def mode_of(values: Any) -> Any:
    """The mode that the sizes in ``values`` belong to, as a context."""
    return detect_fake_mode(pytree.tree_leaves(values)) or contextlib.nullcontext()
