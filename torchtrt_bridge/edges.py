"""What PyTorch does at the edges of a model that TensorRT takes otherwise whole.

An engine has no inputs and results in float64 or int16, and (TensorRT for RTX) none whose size depends on the data.
Where a model converts from or to such a dtype at its ends, or gives such a result, the conversion is left where
eager PyTorch makes it, and everything that computes is in one engine. :mod:`.edge_graph` writes the program so that
these steps stand apart; here it is cut along them. The module is then of several segments, as a cut model is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from .backends.base import Artifact, Place, Segment, Wiring
from .capture import CapturedModel
from .edge_graph import explicit
from .partition import Graph, Piece, cut
from .reproducible import reproducible
from .runtime.program import run_callable, store
from .signature import Signature
from .sizes import Sizes
from .subprogram import subprogram


@dataclasses.dataclass(frozen=True, eq=False)
class Edges:
    """A model that is whole but for its edges: ``inner`` is what a route is given in its place."""

    inner: CapturedModel
    _whole: CapturedModel
    _program: ExportedProgram
    _pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, captured: CapturedModel, place: Place) -> Edges | None:
        """The edges of ``captured``; None where nothing at them keeps it from TensorRT, or more than they do."""
        found = _cut(captured.program) if place.needs_plan else None
        if found is None:
            return None
        program, pieces = found
        inner = _inner(dataclasses.replace(captured, program=program), pieces)
        opaque = _cut(captured.formed) if captured.formed is not None else None
        if opaque is not None:
            formed = _inner(dataclasses.replace(captured, program=opaque[0]), opaque[1])
            if (formed.signature.inputs, formed.signature.outputs) == (inner.signature.inputs, inner.signature.outputs):
                inner = dataclasses.replace(inner, formed=formed.program, calls=captured.calls)
        return cls(inner, captured, program, pieces)

    def around(self, artifact: Artifact) -> Artifact:
        """``artifact``, which a route made of :attr:`inner`, as the whole model's."""
        graph = Graph(self._program, {})

        def wire(node: Node) -> str:
            return f"input.{graph.inputs.index(node)}" if node in graph.inputs else node.name

        segments = []
        for piece in self._pieces:
            wiring = Wiring(tuple(map(wire, piece.inputs)), tuple(map(wire, piece.outputs)))
            if piece.in_tensorrt:
                segments.append(dataclasses.replace(artifact.segments[0], wiring=wiring))
                continue
            program = store(subprogram(self._program, piece.nodes, piece.inputs, piece.outputs)).owned()
            segments.append(Segment("torch", wiring.inputs, wiring.outputs, program=program, wiring=wiring))
        steps = ", ".join(n.name for piece in self._pieces if not piece.in_tensorrt for n in piece.nodes)
        notes = [*artifact.report.get("notes", ()), f"PyTorch converts what no engine takes or gives: {steps}"]
        return dataclasses.replace(
            artifact,
            segments=tuple(segments),
            signature=self._whole.signature,
            constants=self._whole.constants,
            results=tuple(map(wire, graph.results)),
            report={**artifact.report, "notes": notes},
        )


def elsewhere(captured: CapturedModel) -> tuple[str, ...]:
    """A sentence for each result that is not where an engine gives it, on the model's own device."""
    results = captured.program.graph.output_node().all_input_nodes
    places = {node.name: node.meta["val"].device for node in results}
    return tuple(
        f"the result {name!r} is computed on the device {str(device)!r}, and the model is on {str(captured.device)!r}"
        for name, device in places.items()
        if device.type != captured.device.type
    )


def _cut(program: ExportedProgram) -> tuple[ExportedProgram, tuple[Piece, ...]] | None:
    """``program`` with its edges apart, and its pieces, one of them the engine's; None where there is no such cut."""
    found = explicit(program)
    if found is None:
        return None
    program, steps = found
    pieces = cut(program, dict.fromkeys(steps, "at the edge"), smallest=0)
    if sum(piece.in_tensorrt for piece in pieces) != 1:
        return None
    outside = {node.name for piece in pieces if not piece.in_tensorrt for node in piece.nodes}
    return (program, tuple(pieces)) if outside <= steps else None


def _inner(whole: CapturedModel, pieces: Sequence[Piece]) -> CapturedModel:
    """The engine's piece as a model of its own."""
    program = whole.program
    engine = next(piece for piece in pieces if piece.in_tensorrt)
    graph = Graph(program, {})
    values: dict[Node, torch.Tensor] = dict(zip(graph.inputs, whole.inputs))
    for piece in pieces[: pieces.index(engine)]:
        run = run_callable(subprogram(program, piece.nodes, piece.inputs, piece.outputs))
        values.update(zip(piece.outputs, run([values[node] for node in piece.inputs])))
    sizes = Sizes(whole, graph)
    inputs, dims = sizes.specs(engine.inputs, values)
    outputs, _ = sizes.specs(engine.outputs, values)
    # names of nodes would not do: a route may name others so
    inputs = tuple(dataclasses.replace(spec, name=f"input.{i}") for i, spec in enumerate(inputs))
    outputs = tuple(dataclasses.replace(spec, name=f"output.{i}") for i, spec in enumerate(outputs))
    part = subprogram(program, engine.nodes, engine.inputs, engine.outputs)
    run_part = run_callable(part)

    def eager(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with reproducible(whole.device):
            return list(run_part(tensors))

    examples = tuple(values[node] for node in engine.inputs)
    return CapturedModel(part, Signature((), {}, inputs, outputs, {}, dims), examples, (), None, eager, whole.device)
