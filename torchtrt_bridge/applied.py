"""Whether a precision was applied: which share of the matrix and convolution work of a plan runs in what was asked for.

The work is counted in floating point operations, layer by layer, when the plan is built (:mod:`.trt.work`). In which
precision each layer runs is what the engine's own layers say, on a GPU those of the engine that is loaded; where they
do not name a layer, what the network's types say.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Graph

from .errors import PrecisionNotApplied
from .fx_nodes import module_path, operator_name
from .operator_classes import LOW
from .precision import Precision
from .precision_support import no_fp8_convolutions

_MOST = 100  # layers that a report names
_EIGHT_BITS = ("int8", "fp8")


@dataclasses.dataclass(frozen=True)
class Missed:
    """A layer that does not run in the precision that was asked for it.

    Args:
        layer: the path of its module and the operator: ``"encoder.0.up/linear"``.
        kind: ``"matrix_multiply"``, ``"convolution"``, ...
        asked, got: names of precisions.
        share: of all the work, 0 to 1.
        reason: the likely one.
    """

    layer: str
    kind: str
    asked: str
    got: str
    share: float
    reason: str


def told(rows: Sequence[Missed]) -> list[str]:
    """A sentence for each sort of ``rows``, in their order: layers of one kind with one reason are one sort."""
    sorts: dict[tuple[str, ...], list[Missed]] = {}
    for row in rows:
        sorts.setdefault((row.kind, row.asked, row.got, row.reason), []).append(row)
    lines = []
    for (kind, asked, got, reason), alike in sorts.items():
        work = f"{kind.replace('_', ' ')}, {sum(row.share for row in alike):.1%} of the work"
        what = f"{alike[0].layer} ({work}) runs"
        if len(alike) > 1:
            what = f"{len(alike)} layers such as {alike[0].layer} ({work}) run"
        lines.append(f"{what} in {got} instead of {asked}: {reason}")
    return lines


@dataclasses.dataclass(frozen=True)
class Applied:
    """The work of a module's plans by precision.

    Args:
        flops: of one call at the usual sizes; the body of a loop counts once.
        by: the share of the work that runs in each precision.
        asked: for each precision that was asked for, the share of its own work that runs in it.
        how: how that is known.
        missed: the layers that run in another, most work first.
    """

    flops: int
    by: Mapping[str, float]
    asked: Mapping[str, float]
    how: str
    missed: tuple[Missed, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a report; it names the first of the missed layers only."""
        return {**dataclasses.asdict(self), "missed": [dataclasses.asdict(row) for row in self.missed[:_MOST]]}


def applied(
    rows: Sequence[Mapping[str, Any]], inspected: Sequence[str], precision: Precision, graph: Graph
) -> Applied | None:
    """What was applied of ``precision``; None where there is no matrix or convolution work.

    Args:
        rows: the work as the build knows it: fields of :class:`~torchtrt_bridge.trt.work.Work`.
        inspected: what the inspector of each loaded engine says, as JSON; none without a GPU.
        graph: the captured graph, whose layers were asked to have ``precision``.
    """
    from .trt.engine_layers import from_inspector
    from .trt.work import Work, as_built

    work = [Work(**row) for row in rows]
    engine = [layer for text in inspected for layer in from_inspector(text)]
    if any(layer.multiplies and layer.precision for layer in engine):
        work, how = as_built(work, engine), "by the engine's inspector"
    elif any(item.built is not None for item in work):
        how = "as built, kernels not chosen"
    else:
        how = "by the network's types, the engine's layers not known"
    total = sum(item.flops for item in work)
    if not total:
        return None
    wanted = _wanted(graph, precision)
    by: dict[str, int] = collections.Counter()
    asked: dict[str, int] = collections.Counter()
    met: dict[str, int] = collections.Counter()
    missed = []
    for item in work:
        asks = wanted.get(_path(item.place), precision.name)
        got = item.built or item.typed
        by[got] += item.flops
        if asks is None:
            continue
        asked[asks] += item.flops
        if asks == "fp32" or got == asks or (got in _EIGHT_BITS and asks not in _EIGHT_BITS):
            met[asks] += item.flops
        else:
            missed.append(Missed(item.place, item.kind, asks, got, item.flops / total, _reason(item, asks)))
    return Applied(
        flops=total,
        by={name: flops / total for name, flops in sorted(by.items(), key=lambda pair: -pair[1])},
        asked={name: met[name] / flops for name, flops in asked.items()},
        how=how,
        missed=tuple(sorted(missed, key=lambda row: -row.share)),
    )


def _wanted(graph: Graph, precision: Precision) -> dict[str, str | None]:
    """The precision that the products and convolutions of each module are to run in, by its path; None where the model
    has none there: what a route makes products of (a resize, a determinant) is held to nothing."""
    wanted: dict[str, str | None] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            asks = precision.of(node) if operator_name(node) in LOW else None
            wanted[module_path(node)] = asks or wanted.get(module_path(node))
    return wanted


def require(found: Applied, minimum: float) -> None:
    """Raise where less of the work than ``minimum`` (0 to 1) runs in a precision that was asked for it.

    Raises:
        PrecisionNotApplied: with the layers and the likely reasons.
    """
    for name, share in found.asked.items():
        if share >= minimum:
            continue
        rows = [row for row in found.missed if row.asked == name]
        lines = "".join(f"\n  {line}" for line in told(rows))
        raise PrecisionNotApplied(
            f"{share:.1%} of the matrix and convolution work that was to run in {name} does, and at least"
            f" {minimum:.0%} was promised ({found.how}):{lines}\nGive those layers another precision"
            f" (precision={{'default': {name!r}, {_path(rows[0].layer) or 'layer'!r}: {rows[0].got!r}}}), try another"
            f" route, or accept it with build=BuildOptions(minimum_share={int(share * 100) / 100}).",
            rows=[dataclasses.asdict(row) for row in rows],
        )


def _path(layer: str) -> str:
    """The path of the module that a layer was captured in: ``"encoder.0"`` of ``"encoder.0/linear"``."""
    return layer.rpartition("/")[0]


def _reason(item: Any, asks: str) -> str:
    """Why a layer runs in another precision, as far as the network shows it."""
    if item.typed == asks:
        kind = item.kind.replace("_", " ")
        return f"TensorRT chose no {asks} kernel for this {kind}: there is none for its shape, its groups or that GPU"
    if item.hindrance:
        return item.hindrance
    if asks == "fp8" and "convolution" in item.kind and (lost := no_fp8_convolutions()):
        return lost
    if asks in _EIGHT_BITS:
        return (
            "it is not quantized (attentions, and the layers that make the results, are with"
            " quantize=Quantization(attention=True, last_layer=True) alone)"
        )
    return f"its operands are {item.typed}, by rule (see what was kept in fp32) or because a cast stands before it"
