"""A model that no route takes whole: cut, each TensorRT piece by the best route for it, PyTorch between them."""

from __future__ import annotations

import collections
import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from .backends.base import Artifact, Backend, Place, Segment, Support, Wiring
from .capture import CapturedModel
from .errors import BackendUnavailable, BridgeError, BuildFailed, ConversionFailed, NothingInTensorRT
from .partition import Graph, Piece, cut, is_operation
from .reproducible import reproducible
from .runtime.operators import needed
from .runtime.program import run_callable, store
from .signature import Signature
from .sizes import Sizes
from .subprogram import subprogram, without_repeats
from .verify import DEFAULTS, compare

if TYPE_CHECKING:
    from .options import BuildOptions
    from .precision import Precision

_log = logging.getLogger("torchtrt_bridge")
_MOST_CUTS = 12  # each follows a piece that did not convert

Progress = Callable[[str, float], None]


class Hybrid:
    """A cut as one more route, made of others: see :func:`convert`."""

    name = "hybrid"

    def __init__(self, routes: Sequence[Backend], allow_torch: bool, suspicious: bool = False):
        self._routes, self._allow_torch, self._suspicious = routes, allow_torch, suspicious

    def supports(self, captured: CapturedModel, place: Place) -> Support:
        """Always: what does not fit TensorRT is left to PyTorch."""
        return Support(self.name, True)

    def convert(
        self, captured: CapturedModel, precision: Precision, build: BuildOptions, place: Place, progress: Progress
    ) -> Artifact:
        """See :func:`convert`."""
        return convert(
            captured, precision, build, place, self._routes, progress, self._allow_torch, self._suspicious
        )


def convert(
    captured: CapturedModel,
    precision: Precision,
    build: BuildOptions,
    place: Place,
    routes: Sequence[Backend],
    progress: Progress,
    allow_torch: bool = False,
    suspicious: bool = False,
) -> Artifact:
    """The artifact of a cut model.

    Args:
        routes: those that take pieces (they have ``refusals``), best first.
        allow_torch: accept a result with no TensorRT segment at all.
        suspicious: the whole model came out wrong, or could not be run, so each piece is run and compared with eager;
            the operator that a wrong one is due to is PyTorch's from then on. Takes no part where the result runs
            elsewhere.

    Raises:
        NothingInTensorRT: there is none.
        InvalidOption: a setting that no route can honour.
    """
    work = _Work(captured, precision, build, place, routes, progress, suspicious and not place.target)
    pieces = work.pieces()
    if not allow_torch and not any(piece.in_tensorrt for piece in pieces):
        raise NothingInTensorRT(
            f"No part of the model runs in TensorRT:\n{work.reasons()}\nhybrid='allow_torch' accepts a module that"
            " PyTorch runs."
        )
    return work.artifact(pieces)


class _Work:
    """One conversion: what was refused so far, and the pieces that are converted."""

    def __init__(
        self,
        captured: CapturedModel,
        precision: Precision,
        build: BuildOptions,
        place: Place,
        routes: Sequence[Backend],
        progress: Progress,
        suspicious: bool,
    ):
        self._suspicious = suspicious
        captured = dataclasses.replace(captured, program=without_repeats(captured.program))
        self._captured, self._place = captured, place
        self._precision, self._build, self._progress = precision, build, progress
        self.notes: list[str] = []
        self._graph = Graph(captured.program, {})
        self._by_route: dict[str, dict[str, str]] = {}
        self._routes = [route for route in routes if self._ask(route)]
        self._sizes = Sizes(captured, self._graph)
        self.refused: dict[str, str] = dict(self._sizes.unbounded())
        names = [n.name for n in self._graph.nodes]
        for name in names if self._routes else ():
            if all(name in refusals for refusals in self._by_route.values()):
                self.refused[name] = "; ".join(dict.fromkeys(r[name] for r in self._by_route.values()))
        if not self._routes:
            self.refused = dict.fromkeys(names, "no route that takes parts of a model is at hand")
        self._made: dict[Any, Artifact] = {}
        self._values: dict[Node, Any] = {}

    def _ask(self, route: Backend) -> bool:
        """Take the route's answer to which operators it refuses; False where it has none."""
        try:
            refusals = route.refusals(self._captured.program, self._place)  # type: ignore[attr-defined]
        except Exception as error:  # a fault of one route, in whatever library it drives, must not cost the others
            if not isinstance(error, BridgeError):
                _log.warning("the route %r failed in a way that it should not", route.name, exc_info=True)
            self.notes.append(f"{route.name} took no part: {(str(error).splitlines() or ['?'])[0]}")
            return False
        self._by_route[route.name] = dict(refusals)
        return True

    def pieces(self) -> list[Piece]:
        """A cut of which every TensorRT piece is converted."""
        for _ in range(_MOST_CUTS):
            pieces = cut(self._captured.program, self.refused)
            if not self._convert_all(pieces):
                return pieces
        pieces = cut(self._captured.program, self.refused)
        failed = self._convert_all(pieces)
        for piece in failed:
            self.refused.update({n.name: "the part of the model around it did not convert" for n in piece.nodes})
        return cut(self._captured.program, self.refused) if failed else pieces

    def _convert_all(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Convert what is not yet; pieces that fail have at least one more node refused."""
        failed = []
        self._run(pieces)
        total = sum(piece.in_tensorrt for piece in pieces)
        for number, piece in enumerate((p for p in pieces if p.in_tensorrt), 1):
            if piece.key in self._made:
                continue
            found = self._convert(piece, _prefixed(self._progress, f"part {number} of {total}: "))
            if isinstance(found, Artifact):
                self._made[piece.key] = found
            else:
                self.refused.update(found)
                failed.append(piece)
        return failed

    def _convert(self, piece: Piece, progress: Progress) -> Artifact | dict[str, str]:
        """The piece's artifact by the first route that makes one, or the nodes that stand in the way, with reasons."""
        names = [node.name for node in piece.nodes]
        willing = [r for r in self._routes if not any(name in self._by_route[r.name] for name in names)]
        if not willing:
            fewest = min(self._by_route.values(), key=lambda refusals: sum(name in refusals for name in names))
            return {name: fewest[name] for name in names if name in fewest}
        unbindable = self._sizes.unbindable(piece)
        if unbindable:
            return unbindable
        captured = self._capture(piece)
        errors: list[Exception] = []
        for route in willing:
            try:
                return self._attempt(route, captured, progress)
            except (ConversionFailed, BuildFailed, BackendUnavailable) as error:
                _log.info("a part of the model did not convert by %s: %s", route.name, error)
                errors.append(error)
        reason = "; ".join(str(error).splitlines()[0] for error in errors)
        culprits = {node for error in errors for node in _named(error, piece)} or self._search(piece, willing)
        return {node.name: reason for node in culprits}

    def _attempt(self, route: Backend, captured: CapturedModel, progress: Progress) -> Artifact:
        support = route.supports(captured, self._place)
        if not support.possible:
            raise ConversionFailed("; ".join(support.reasons))
        artifact = route.convert(captured, self._precision, self._build, self._place, progress)
        if self._suspicious:
            self._compare(artifact, captured)
        return artifact

    def _compare(self, artifact: Artifact, captured: CapturedModel) -> None:
        """Raise unless the piece computes what eager does, at the example's sizes."""
        from .runtime.module import TRTModule

        limit = DEFAULTS[self._precision.narrowest]
        if any(t.numel() == 0 for t in captured.inputs):
            return  # such a piece is not run
        try:
            found = TRTModule(self._place.device, _artifact=artifact).run_flat(captured.inputs)
        except RuntimeError as error:
            raise ConversionFailed(f"TensorRT cannot run it: {error}") from error
        results = zip(captured.signature.outputs, captured.eager(captured.inputs), found)
        for spec, expected, actual in results:
            row = compare("the example", spec.name, expected, actual, limit)
            if not row.passed:
                raise ConversionFailed(f"TensorRT's result is wrong: {row}")

    def _search(self, piece: Piece, routes: Sequence[Backend]) -> set[Node]:
        """The node without which the nodes before it convert, by halving; all nodes where there is none."""

        def converts(count: int) -> bool:
            head = self._head(piece, count)
            for route in routes if head is not None else ():
                try:
                    assert head is not None
                    self._attempt(route, self._capture(head), lambda *_: None)
                    return True
                except (ConversionFailed, BuildFailed, BackendUnavailable):
                    continue
            return head is None

        good, bad = 0, len(piece.nodes)
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if converts(middle) else (good, middle)
        node = piece.nodes[bad - 1]
        if isinstance(node.meta.get("val"), (tuple, list)) or is_operation(node):
            return {node}
        return set(piece.nodes)

    def _head(self, piece: Piece, count: int) -> Piece | None:
        """The first ``count`` nodes of ``piece`` as a piece; None where they give nothing."""
        nodes = piece.nodes[:count]
        own = set(nodes)
        last = [n for n in nodes if not own.intersection(n.users) and not isinstance(n.meta["val"], (tuple, list))]
        if not last:
            return None
        inputs = tuple(i for i in piece.inputs if any(i in set(self._graph.sources(n)) for n in nodes)) or piece.inputs
        return Piece(piece.kind, nodes, inputs, tuple(last))

    def _capture(self, piece: Piece) -> CapturedModel:
        """``piece`` as a model of its own, for a route; its example inputs are what the whole model's lead to."""
        program = subprogram(self._captured.program, piece.nodes, piece.inputs, piece.outputs)
        specs, dims = self._sizes.specs(piece.inputs, self._values)
        outputs, _ = self._sizes.specs(piece.outputs, self._values)
        signature = Signature((), {}, specs, outputs, {}, dims)
        run = run_callable(program)

        def eager(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            with reproducible(self._captured.device):
                return list(run(tensors))

        inputs = tuple(self._values[node] for node in piece.inputs)
        return CapturedModel(program, signature, inputs, (), None, eager, self._captured.device)

    def _run(self, pieces: Sequence[Piece]) -> None:
        """The values between the pieces, for the example inputs."""
        self._values.update(zip(self._graph.inputs, self._captured.inputs))
        with reproducible(self._captured.device):
            for piece in pieces:
                if all(node in self._values for node in piece.outputs):
                    continue
                run = run_callable(subprogram(self._captured.program, piece.nodes, piece.inputs, piece.outputs))
                self._values.update(zip(piece.outputs, run([self._values[node] for node in piece.inputs])))

    def artifact(self, pieces: Sequence[Piece]) -> Artifact:
        """The finished artifact: a segment for each piece, wired by names."""
        segments = []
        made = [self._made[piece.key] for piece in pieces if piece.in_tensorrt]
        for piece in pieces:
            wiring = Wiring(tuple(map(self._wire, piece.inputs)), tuple(map(self._wire, piece.outputs)))
            if piece.in_tensorrt:
                wiring = dataclasses.replace(wiring, sizes=self._sizes.wired(piece) if piece.kind else None)
                segment = dataclasses.replace(self._made[piece.key].segments[0], wiring=wiring)
            else:
                program = subprogram(self._captured.program, piece.nodes, piece.inputs, piece.outputs)
                stored = store(program).owned()
                segment = Segment("torch", wiring.inputs, wiring.outputs, program=stored, wiring=wiring)
            segments.append(segment)
        provenance: dict[str, Any] = dict(made[0].provenance if made else {"torch": torch.__version__})
        provenance["device"] = self._place.device.type
        operators = needed(segment.program for segment in segments if segment.program is not None)
        if operators:
            provenance["operators"] = operators
        if "layers" in provenance:
            provenance["layers"] = sum(part.provenance["layers"] for part in made)
        kept: dict[str, list[str]] = {}
        for part in made:
            for op, places in part.report.get("kept_fp32", {}).items():
                kept[op] = list(dict.fromkeys([*kept.get(op, ()), *places]))
        notes = list(dict.fromkeys([*self.notes, *(n for part in made for n in part.report.get("notes", ()))]))
        return Artifact(
            segments=tuple(segments),
            signature=self._captured.signature,
            backend="+".join(dict.fromkeys(part.backend for part in made)) or "torch",
            precision=self._precision.name,
            constants=self._captured.constants,
            provenance=provenance,
            report={
                "kept_fp32": kept,
                "notes": notes,
                "work_rows": [row for part in made for row in part.report.get("work_rows", ())],
                "hybrid": self._report(pieces),
            },
            results=tuple(map(self._wire, self._graph.results)),
        )

    def _wire(self, node: Node) -> str:
        return f"input.{self._graph.inputs.index(node)}" if node in self._graph.inputs else node.name

    def _report(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What is where, as data (see :class:`~torchtrt_bridge.report.Report`)."""
        rows = []
        for piece in pieces:
            by = self._made[piece.key].backend if piece.in_tensorrt else "torch"
            rows.append({"route": by, "tensorrt": piece.in_tensorrt, "operations": piece.operations})
        operations = sum(piece.operations for piece in pieces)
        outside = sum(piece.operations for piece in pieces if not piece.in_tensorrt)
        layers: dict[tuple[str, str, str], int] = collections.Counter()
        for piece in pieces:
            for node in piece.nodes if not piece.in_tensorrt else ():
                if is_operation(node):
                    layers[operator_of(node), place_of(node), self._reason(node)] += 1
        return {
            "operations": operations,
            "outside": outside,
            "segments": rows,
            "layers": [
                {"operator": operator, "place": place, "reason": reason, "count": count}
                for (operator, place, reason), count in layers.items()
            ],
        }

    def _reason(self, node: Node) -> str:
        if node.name in self.refused:
            return self.refused[node.name]
        if self._graph.needs_torch(node):
            return "a size here depends on the data"
        return "too little between others to be worth a crossing"

    def reasons(self) -> str:
        """Which operators keep the model out of TensorRT, a line each."""
        lines: dict[str, None] = {}
        for node in self._graph.work:
            if is_operation(node):
                lines[f"  {operator_of(node)} (in {place_of(node) or 'the top module'}): {self._reason(node)}"] = None
        return "\n".join(list(lines)[:12] + (["  ..."] if len(lines) > 12 else []))


def _prefixed(progress: Progress, prefix: str) -> Progress:
    return lambda phase, fraction: progress(prefix + phase, fraction)


def operator_of(node: Node) -> str:
    """``aten.linear`` of a node that calls ``torch.ops.aten.linear.default``."""
    return str(node.target).removesuffix(".default")


def place_of(node: Node) -> str:
    """The path of the user's module that ``node`` comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].removeprefix("model").removeprefix(".") if stack else ""


def _named(error: BaseException, piece: Piece) -> set[Node]:
    """The nodes of ``piece`` that a failed conversion names: by their own names after their modules' paths, as the
    layers of an ONNX model and of TensorRT carry them."""
    text = str(error)
    found = set()
    for node in piece.nodes:
        path = place_of(node)
        if path and re.search(rf"(?<![\w.]){re.escape(path)}/{re.escape(node.name)}(?!\w)", text):
            found.add(node)
    return found


def summary(report: Mapping[str, Any]) -> str:
    """``"4 of 60 operations (6.7 %) outside TensorRT"``."""
    share = report["outside"] / max(1, report["operations"])
    return f"{report['outside']} of {report['operations']} operations ({share:.1%}) outside TensorRT"
