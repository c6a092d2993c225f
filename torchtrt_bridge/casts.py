"""The casts of a graph that is being written: one for all who ask the same, none where a constant is stored so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from .fx_nodes import between, operator_name, retyped
from .operator_classes import VIEWS

aten = torch.ops.aten


class Casts:
    """The casts that were asked for in ``graph``, whose nodes have fake tensors as ``meta["val"]``.

    Args:
        lows: the low dtypes in use.

    Attributes:
        consumer: the node, of whatever graph, for which casts are made now; they are said to be in its module.
    """

    def __init__(self, graph: Graph, constants: Mapping[Node, torch.Tensor], lows: Collection[torch.dtype]):
        self.consumer: Node | None = None
        self._graph, self._constants, self._lows = graph, constants, lows
        self._made: dict[tuple[Node, torch.dtype, float | None], Node] = {}

    def cast(self, node: Node, dtype: torch.dtype, bound: float | None = None) -> Node:
        """``node`` as ``dtype``, its finite values clamped to ``bound`` first; one cast for all who ask the same."""
        value = node.meta["val"]
        if value.dtype == dtype:
            return node
        key = (node, dtype, bound)
        if key not in self._made:
            new = self._made[key] = self._cast_view(node, dtype, bound) or self._new_cast(node, dtype, bound)
            if value.dtype in self._lows and dtype == torch.float32:
                self._made[new, value.dtype, None] = node  # and back: nothing was lost
        return self._made[key]

    def _cast_view(self, node: Node, dtype: torch.dtype, bound: float | None) -> Node | None:
        """A view of a constant is cast by casting the constant, which then needs no cast when it is stored."""
        if node.op != "call_function" or operator_name(node) not in VIEWS:
            return None
        source = node
        while source.op == "call_function" and operator_name(source) in VIEWS:
            source = source.args[0]  # type: ignore[assignment]
        if source not in self._constants:
            return None
        base = self.cast(node.args[0], dtype, bound)  # type: ignore[arg-type]
        view = self._graph.call_function(node.target, (base, *node.args[1:]), node.kwargs)  # type: ignore[arg-type]
        view.meta = {**node.meta, "val": retyped(node.meta["val"], dtype)}
        view.meta.pop("tensor_meta", None)
        return view

    def _new_cast(self, node: Node, dtype: torch.dtype, bound: float | None) -> Node:
        def emit(target: Any, *args: Any, to: torch.dtype = torch.float32, **kwargs: Any) -> Node:
            assert self.consumer is not None
            name = f"{node.name}_{str(to).removeprefix('torch.')}" if to == dtype else None
            new = self._graph.create_node("call_function", target, args, kwargs, name=name)
            meta = self.consumer.meta
            new.meta = {key: meta[key] for key in ("nn_module_stack", "stack_trace") if key in meta}
            new.meta["val"] = retyped(node.meta["val"], to)
            return new

        value = node
        if bound is not None:
            if node.meta["val"].dtype != torch.float32:
                value = emit(aten._to_copy.default, node, to=torch.float32, dtype=torch.float32)
            clamped = emit(aten.clamp.default, value, -bound, bound)
            infinite = emit(aten.isinf.default, value, to=torch.bool)
            value = emit(aten.where.self, infinite, value, clamped)
        return emit(aten._to_copy.default, value, to=dtype, dtype=dtype)

    def store_constants(self) -> dict[str, tuple[torch.dtype, float | None]]:
        """Store each constant as its readers want it: low if all do; float32, with a cast in the graph, if some do.

        Returns the dtype to store each in, by its placeholder's name, and the bound to clamp it to, if any.
        """
        stored: dict[str, tuple[torch.dtype, float | None]] = {}
        for node in self._constants:
            wanted = {
                (dtype, bound): cast
                for (source, dtype, bound), cast in self._made.items()
                if source is node and cast.users
            }
            readers = set().union(*(between(node, cast) for cast in wanted.values()))
            if not node.users:
                node.meta["val"] = retyped(node.meta["val"], self._constants[node].dtype)
            elif len(wanted) == 1 and set(node.users) <= readers:
                (((dtype, bound), cast),) = wanted.items()
                stored[node.name] = dtype, bound
                node.meta["val"] = retyped(node.meta["val"], dtype)
                cast.replace_all_uses_with(node)
            else:
                stored[node.name] = torch.float32, None
        self._graph.eliminate_dead_code()
        return stored
