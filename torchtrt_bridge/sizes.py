"""Sizes between the pieces of a cut: as expressions in the model's own dims, or, where they depend on the data, as dims
of their own with the largest value that they can have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from .capture import CapturedModel
from .dynamic import DynamicShapes
from .partition import Graph, Piece, reads_data, tensors_of
from .signature import Dim, TensorSpec

_AT_MOST_ONE_PER_ELEMENT = frozenset(
    "aten.nonzero aten.nonzero_numpy aten.where aten.index aten.masked_select aten.unique_consecutive aten._unique2"
    " aten.unique_dim aten._unique torchvision.nms".split()
)


class Sizes:
    """The sizes in one captured model."""

    def __init__(self, captured: CapturedModel, graph: Graph):
        self._dims = captured.signature.dims
        self._graph = graph
        self._names: dict[str, str] = {}
        self._symbols: dict[str, Any] = {}
        for node, spec in zip(graph.inputs, captured.signature.inputs):
            for size, name in zip(node.meta["val"].shape, spec.shape):
                if isinstance(size, torch.SymInt) and isinstance(name, str):
                    self._names[str(size.node.expr)] = name
                    self._symbols[name] = size.node.expr
        self._limits = self._find_limits(captured)

    def _find_limits(self, captured: CapturedModel) -> dict[Any, int | None]:
        """The largest value of every symbol that depends on the data; None where nothing bounds it."""
        limits: dict[Any, int | None] = {}
        for node in self._graph.nodes:
            for symbol in (s for t in tensors_of(node) for s in free_unbacked_symbols(t)):
                if symbol in limits:
                    continue
                declared = captured.program.range_constraints.get(symbol)
                limits[symbol] = _finite(declared.upper) if declared is not None else None
                name = str(node.target).rpartition(".")[0]
                if limits[symbol] is None and reads_data(node) and name in _AT_MOST_ONE_PER_ELEMENT:
                    sources = [t for n in node.all_input_nodes for t in tensors_of(n)]
                    if name == "aten.index":
                        sources = [t for t in sources if t.dtype in (torch.bool, torch.uint8)]
                    counts = [self._largest(t.numel(), limits) for t in sources]
                    limits[symbol] = None if None in counts or not counts else max(c for c in counts if c is not None)
        return limits

    def _largest(self, size: Any, limits: Mapping[Any, int | None]) -> int | None:
        """``size`` where every dim and symbol is at its largest."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        values = {symbol: self._dims[name].max for name, symbol in self._symbols.items()}
        known = {s: limits[s] for s in free_unbacked_symbols(size)}
        if None in known.values():
            return None
        return _finite(size.node.expr.subs({**values, **known}))

    def unbounded(self) -> dict[str, str]:
        """The nodes with a size that nothing bounds, which no optimization profile can hold."""
        bad = {symbol for symbol, limit in self._limits.items() if limit is None}
        reason = "a size here depends on the data and has no known maximum; torch._check(size <= maximum) gives it one"
        return {n.name: reason for n in self._graph.work if bad & self._graph.data_sizes(n)}

    def unbindable(self, piece: Piece) -> dict[str, str]:
        """The nodes of ``piece`` with a size that it cannot know from its inputs: where one of these has a size such as
        ``Min(100, u0)``, torch cannot tell the ``u0`` that other sizes may be made of."""
        unknown: dict[Any, str] = {}
        for node in piece.inputs:
            sizes = [size for size in node.meta["val"].shape if isinstance(size, torch.SymInt)]
            bare = {size.node.expr for size in sizes}
            for size in sizes:
                unknown.update({s: str(size.node.expr) for s in free_unbacked_symbols(size) - bare})
        found = {}
        for node in piece.nodes:
            for symbol in self._graph.data_sizes(node) & set(unknown):
                found[node.name] = f"a size here is {unknown[symbol]}, of a number that depends on the data"
        return found

    def specs(
        self, nodes: Sequence[Node], values: Mapping[Node, torch.Tensor]
    ) -> tuple[tuple[TensorSpec, ...], dict[str, Dim]]:
        """What a route is told of tensors at the edge of a piece, and the dims that their sizes are made of."""
        dims: dict[str, Dim] = {}
        specs = []
        for node in nodes:
            tensor = node.meta["val"]
            example = values.get(node)
            shape = tuple(
                self._size(size, int(example.shape[axis]) if example is not None else 1, dims)
                for axis, size in enumerate(tensor.shape)
            )
            specs.append(TensorSpec(node.name, str(tensor.dtype).removeprefix("torch."), shape))
        return tuple(specs), dims

    def _size(self, size: Any, example: int, dims: dict[str, Dim]) -> int | str:
        if not isinstance(size, torch.SymInt):
            return int(size)
        text = self.text(size)
        if not free_unbacked_symbols(size) and text != "?":
            dims.update({name: self._dims[name] for name in self._dims if re.search(rf"\b{name}\b", str(text))})
            return text
        label = re.sub(r"\W+", "_", str(size.node.expr)).strip("_")
        largest = self._largest(size, self._limits)
        top = max(1, largest if largest is not None else example)
        dims[label] = Dim(1, min(max(1, example), top), top, label)
        return label

    def text(self, size: Any) -> int | str:
        """A size in the names of the model's dims and of torch's own symbols; ``"?"`` where no file can hold it."""
        symbols = {**self._names, **{str(s): str(s) for s in self._limits}}
        return DynamicShapes.rename(size, symbols)

    def wired(self, piece: Piece) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The inputs and outputs of ``piece`` with the sizes that an empty call's results are made from."""

        def spec(node: Node) -> TensorSpec:
            tensor = node.meta["val"]
            return TensorSpec(node.name, str(tensor.dtype).removeprefix("torch."), tuple(map(self.text, tensor.shape)))

        return tuple(map(spec, piece.inputs)), tuple(map(spec, piece.outputs))


def _finite(value: Any) -> int | None:
    try:
        number = int(value)
    except (OverflowError, TypeError, ValueError, AttributeError):
        return None
    return number if number < 2**31 else None

