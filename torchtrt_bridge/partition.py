"""A graph cut into pieces that TensorRT takes and pieces that PyTorch runs between them.

Every node gets a kind, TensorRT's or PyTorch's, and the earliest stage that its inputs allow: a stage holds nodes of
one kind, and an edge between kinds leads to a later stage. So a cut has no cycles by construction and no more stages
than the longest alternation of kinds; pieces of one kind with nothing between them become one. (torch.fx's
``CapabilityBasedPartitioner`` gives the supported parts alone, and knows no third kind. Here there are more: a size
that depends on the data may be 0, which TensorRT has not, so nodes with such a size form pieces of their own, which
are skipped when it is 0.)

Two sorts of nodes belong to no piece and are copied to where they are read: numbers made from shapes, which become
sizes of a tensor that the piece has, and what is made from constants alone.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

SMALLEST = 5
"""Fewest operators of a TensorRT piece without a matrix product or convolution; smaller ones stay in PyTorch, and so
do those without one whose sizes depend on the data, whatever their number: an engine is set to new sizes in each call.
What TensorRT must win back is the crossing, which ``benchmarks/segments.py`` measures."""

Kind = frozenset[str] | None
"""None: PyTorch. Else TensorRT, and the symbols of the sizes in it that depend on the data."""

_ASSERTIONS = ("aten._assert_scalar", "aten.sym_constrain_range", "aten._assert_tensor_metadata")
_PRODUCTS = frozenset("linear matmul mm addmm bmm baddbmm einsum lstm gru rnn_tanh rnn_relu".split())


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Nodes of one kind, in the graph's order, with the nodes that they read from elsewhere and that others read."""

    kind: Kind
    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]

    @property
    def in_tensorrt(self) -> bool:
        return self.kind is not None

    @property
    def operations(self) -> int:
        return sum(map(is_operation, self.nodes))

    @property
    def key(self) -> tuple[Any, ...]:
        """What a conversion of this piece depends on."""
        return tuple(tuple(n.name for n in group) for group in (self.nodes, self.inputs, self.outputs))


def cut(program: ExportedProgram, refused: Mapping[str, str], smallest: int = SMALLEST) -> list[Piece]:
    """The pieces of ``program``, in an order in which they can run.

    Args:
        program: functional, with flat tensor inputs and outputs.
        refused: names of nodes that TensorRT does not take, with reasons.
        smallest: TensorRT pieces of fewer operators, without a matrix product or convolution, become PyTorch's, unless
            no other were left; so do all without one whose sizes depend on the data.
    """
    graph = Graph(program, refused)
    torch_nodes = {n for n in graph.work if n.name in refused or graph.needs_torch(n)}
    pieces = _pieces(graph, torch_nodes)
    while True:
        small = [p for p in pieces if p.in_tensorrt and not _is_worth_it(p, smallest)]
        if not small or len(small) == sum(p.in_tensorrt for p in pieces):
            return pieces
        torch_nodes |= {node for piece in small for node in piece.nodes}
        pieces = _pieces(graph, torch_nodes)


def is_operation(node: Node) -> bool:
    """Whether ``node`` computes tensors: the unit in which a cut is counted."""
    return node.op == "call_function" and node.target is not operator.getitem and not is_number(node) and not (
        is_assertion(node)
    )


def is_number(node: Node) -> bool:
    """Whether the value of ``node`` is a number made from shapes (or read from a tensor)."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, bool, int, float))


def reads_data(node: Node) -> bool:
    """Whether ``node`` makes a number, or a tensor of a size, that depends on the values in a tensor."""
    if node.target in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
        return True
    made = set().union(*map(free_unbacked_symbols, tensors_of(node)))
    return bool(made - set().union(*(free_unbacked_symbols(n.meta["val"]) for n in node.all_input_nodes if _has(n))))


def has_size(tensor: Node, number: Node) -> int | None:
    """The axis of ``tensor`` whose size is the dynamic ``number``."""
    wanted = number.meta["val"]
    for axis, size in enumerate(getattr(tensor.meta.get("val"), "shape", ())):
        if isinstance(size, torch.SymInt) and isinstance(wanted, torch.SymInt) and size.node.expr == wanted.node.expr:
            return axis
    return None


def tensors_of(node: Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    return [t for t in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(t, torch.Tensor)]


class Graph:
    """What the cut asks about a program's graph."""

    def __init__(self, program: ExportedProgram, refused: Mapping[str, str]):
        self._refused = refused
        self.nodes: list[Node] = list(program.graph.nodes)
        user = set(program.graph_signature.user_inputs)
        self.inputs = [n for n in self.nodes if n.op == "placeholder" and n.name in user]
        self.results: list[Node] = [n for n in self.nodes[-1].args[0] if isinstance(n, Node)]  # type: ignore[union-attr]
        self.assertions = [n for n in self.nodes if is_assertion(n)]
        self._home = {n.meta["val"].device.type for n in self.inputs}
        self._at = {node: index for index, node in enumerate(self.nodes)}
        self._varying = self._vary()
        self.work = [n for n in self.nodes if n.op == "call_function" and self._is_work(n)]
        self._works = frozenset(self.work)

    def _vary(self) -> set[Node]:
        """The nodes that an input reaches, or chance; and constants that TensorRT cannot make."""
        varying = set(self.inputs)
        for node in self.nodes:
            own = node.op == "call_function" and (
                torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
                or node.name in self._refused
                or reads_data(node)
            )
            if own or not varying.isdisjoint(node.all_input_nodes):
                varying.add(node)
        return varying

    def _is_work(self, node: Node) -> bool:
        if is_assertion(node):
            return False
        if is_number(node):
            return node.target in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
        return node in self._varying

    def order(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        return tuple(sorted(set(nodes), key=self._at.__getitem__))

    def needs_torch(self, node: Node) -> bool:
        """Whether the sizes at ``node`` keep it from TensorRT: they depend on the data and may be 0 where its result is
        not empty, or they come from a number and not from a tensor's shape. Or its tensors are not all on the model's
        device."""
        if is_number(node) or reads_data(node):
            return True
        if {t.device.type for n in (node, *node.all_input_nodes) for t in tensors_of(n)} - self._home:
            return True
        symbols = self.data_sizes(node)
        if not all(_is_empty_without(value, symbol) for value in tensors_of(node) for symbol in symbols):
            return True
        return any(n.target is torch.ops.aten._local_scalar_dense.default for n in self.numbers_behind(node))

    def data_sizes(self, node: Node) -> frozenset[Any]:
        """The symbols of sizes at ``node`` that depend on the data."""
        values = [n.meta["val"] for n in node.all_input_nodes if _has(n)] + tensors_of(node)
        return frozenset().union(*map(free_unbacked_symbols, values))

    def numbers_behind(self, node: Node) -> Iterator[Node]:
        """The numbers that ``node`` reads, and those that they are made from."""
        for source in node.all_input_nodes:
            if is_number(source) and source.op == "call_function":
                yield source
                yield from self.numbers_behind(source)

    def sources(self, node: Node) -> Iterator[Node]:
        """The pieces of work and inputs that ``node`` reads, through numbers and constants."""
        for source in node.all_input_nodes:
            if source in self._works or source in self.inputs:
                yield source
            elif source.op == "call_function" and self.size_source(source) is None:
                yield from self.sources(source)

    def readers(self, node: Node) -> Iterator[Node]:
        """The pieces of work that read ``node``, also through the numbers made from its shape."""
        for user in node.users:
            if user in self._works:
                yield user
            elif user.op == "call_function" and is_number(user) and self.size_source(user) is None:
                yield from self.readers(user)

    def size_source(self, node: Node) -> tuple[Node, int] | None:
        """Where ``node`` is a size that some input of the model has too: that input and its axis."""
        if node.target is not torch.ops.aten.sym_size.int:
            return None
        return next(((tensor, axis) for tensor in self.inputs if (axis := has_size(tensor, node)) is not None), None)


def _pieces(graph: Graph, torch_nodes: set[Node]) -> list[Piece]:
    kinds: dict[Node, Kind] = {}
    stages: dict[Node, int] = {}
    for node in graph.work:
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        if node.target is operator.getitem and source in kinds:  # tuples do not travel
            kinds[node], stages[node] = kinds[source], stages[source]
            continue
        kind = None if node in torch_nodes else frozenset(map(str, graph.data_sizes(node)))
        sources = [s for s in graph.sources(node) if s in kinds]
        kinds[node] = kind
        stages[node] = max((stages[s] + (kinds[s] != kind) for s in sources), default=0)
    groups: dict[tuple[int, Kind], set[Node]] = {}
    for node in graph.work:
        groups.setdefault((stages[node], kinds[node]), set()).add(node)
    merged = _merge([(kind, nodes) for (_, kind), nodes in groups.items()], graph)
    return [_piece(graph, kind, nodes) for kind, nodes in merged]


def _merge(groups: list[tuple[Kind, set[Node]]], graph: Graph) -> list[tuple[Kind, set[Node]]]:
    """Groups of one kind with no other group between them as one; in an order in which they can run."""
    while True:
        home = {node: index for index, (_, nodes) in enumerate(groups) for node in nodes}
        before: list[set[int]] = [
            {home[s] for node in nodes for s in graph.sources(node) if s in home} - {index}
            for index, (_, nodes) in enumerate(groups)
        ]
        order = _sorted(before)
        ahead: dict[int, set[int]] = {}
        for index in order:
            ahead[index] = set(before[index]).union(*(ahead[b] for b in before[index]))
        pair = next(
            (
                (a, b)
                for position, b in enumerate(order)
                for a in order[:position]
                if groups[a][0] == groups[b][0] and not any(a in ahead[middle] for middle in ahead[b] - {a})
            ),
            None,
        )
        if pair is None:
            return [groups[index] for index in order]
        a, b = pair
        groups = [group for index, group in enumerate(groups) if index not in pair] + [
            (groups[a][0], groups[a][1] | groups[b][1])
        ]


def _sorted(before: list[set[int]]) -> list[int]:
    done: list[int] = []
    while len(done) < len(before):
        done.append(next(i for i in range(len(before)) if i not in done and before[i] <= set(done)))
    return done


def _piece(graph: Graph, kind: Kind, nodes: set[Node]) -> Piece:
    results = set(graph.results)
    outputs = []
    for node in nodes:
        if isinstance(node.meta.get("val"), (tuple, list)):
            continue  # its parts are nodes of their own
        outside = any(user not in nodes for user in graph.readers(node))
        if node in results or outside:
            outputs.append(node)
    inputs = {source for node in nodes for source in graph.sources(node) if source not in nodes}
    for size in (n for node in nodes for n in graph.numbers_behind(node)):
        found = graph.size_source(size)
        if found is not None and size.args[0] not in nodes | inputs and all(has_size(t, size) is None for t in inputs):
            inputs.add(found[0])
    kept = [a for a in graph.assertions if kind is None and _belongs(graph, a, nodes)]
    return Piece(kind, graph.order([*nodes, *kept]), graph.order(inputs), graph.order(outputs))


def _belongs(graph: Graph, assertion: Node, nodes: set[Node]) -> bool:
    """Whether an assertion is about what ``nodes`` make: sizes of inputs are checked before the first piece runs."""
    sources = list(graph.sources(assertion))
    return bool(sources) and all(source in nodes for source in sources)


def _is_worth_it(piece: Piece, smallest: int) -> bool:
    names = {str(n.target).removeprefix("aten.").split(".")[0] for n in piece.nodes}
    heavy = any(name in _PRODUCTS or "conv" in name or "attention" in name for name in names)
    return heavy or (not piece.kind and piece.operations >= smallest)


def is_assertion(node: Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith(_ASSERTIONS)


def _is_empty_without(value: torch.Tensor, symbol: Any) -> bool:
    """Whether ``value`` has no elements where the size ``symbol`` is 0."""
    sizes: Iterator[Any] = (size.node.expr for size in value.shape if isinstance(size, torch.SymInt))  # type: ignore
    return any(expression.subs(symbol, 0) == 0 for expression in sizes)


def _has(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))
