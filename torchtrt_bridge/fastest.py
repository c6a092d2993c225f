"""``backend="fastest"``: every route that can is built, verified and measured here; the decision is kept.

What is kept is the winner's saved form under the model's fingerprint (:mod:`.fingerprint`), so that the same model
compiled again builds nothing. It is verified like any other module, and left aside where it does not hold.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .backends.base import Artifact, Place
from .cache import Cache
from .capture import CapturedModel
from .errors import BridgeError, InvalidOption
from .fingerprint import Indescribable, fingerprint
from .progress import Stages
from .racing import Lap, race
from .runtime.files import from_bytes, to_bytes
from .selection import Attempt, Attempts, candidates, in_parts, set_rows
from .tensor_digests import TensorDigests

if TYPE_CHECKING:
    from .options import BuildOptions
    from .precision import Precision
    from .runtime.module import TRTModule

_log = logging.getLogger("torchtrt_bridge")

BUDGET_S = 5.0
"""Most seconds that the rounds of a measurement take."""


class Finish(Protocol):
    """What becomes of an artifact: a module, verified, with a report."""

    def load(self, artifact: Artifact, caches: Sequence[torch.Tensor] = ()) -> TRTModule: ...

    def check(self, module: TRTModule) -> TRTModule:
        """Raises VerificationFailed; else the module has its report."""
        ...


def fastest(
    captured: CapturedModel,
    precision: Precision,
    build: BuildOptions,
    place: Place,
    stages: Stages,
    finish: Finish,
    cuda_graph: bool | str,
    options: Any,
    known: TensorDigests | None,
) -> TRTModule:
    """The module of the route that is fastest here, at the usual sizes, plain or through a CUDA graph.

    Args:
        cuda_graph: True or False measure that alone.
        options: all that was asked for, as a dataclass: part of what a kept decision is found by.
        known: the digests of the model's tensors, where they were made already.

    Raises:
        InvalidOption: the result is for a GPU elsewhere.
        BridgeError: no route could; see :meth:`.selection.Attempts.error`.
    """
    if place.target:
        raise InvalidOption(
            "backend='fastest' measures on the GPU that is here, and this build is for one elsewhere. Name a route, or"
            " leave backend='auto'."
        )
    cache = Cache()
    with stages("looking it up"):
        key = _key(captured, place, options, known) if cache.folder is not None else None
        data = cache.get(key) if key is not None else None
    if data is not None:
        kept = _kept(data, stages, finish)
        if kept is not None:
            return kept
    attempts = Attempts()
    made: dict[str, tuple[TRTModule, float]] = {}
    for route in candidates("fastest") if options.hybrid is not True else ():
        began = time.perf_counter()
        module = attempts.make(
            route, captured, precision, build, place, stages, lambda artifact: finish.check(finish.load(artifact))
        )
        if module is not None:
            made[route.name] = module, time.perf_counter() - began
    if not made:
        return in_parts(
            attempts,
            captured,
            precision,
            build,
            place,
            "fastest",
            stages,
            lambda artifact: finish.check(finish.load(artifact)),
            options.hybrid,
        )
    with stages("measuring"):
        laps = race({name: module for name, (module, _) in made.items()}, captured, place, cuda_graph, BUDGET_S)
    best = laps[0]
    module, _ = made[best.name]
    module.settle_graph(best.graph)
    finish.check(module)
    rows = [_row(lap, best, made[lap.name][1]) for lap in laps]
    set_rows(module, [*rows, *attempts.rows])
    if key is not None:
        cache.put(key, to_bytes(module.tensors()))
    return module


def _key(captured: CapturedModel, place: Place, options: Any, known: TensorDigests | None) -> str | None:
    try:
        return "fastest " + fingerprint(captured, place, {"options": options}, known)
    except Indescribable as error:
        _log.info("the choice is not kept for later: the model holds %s", error)
        return None


def _kept(data: memoryview, stages: Stages, finish: Finish) -> TRTModule | None:
    """The module that was chosen before; None where it does not hold."""
    from .runtime.artifact import from_tensors

    try:
        with stages("loading"):
            artifact, caches = from_tensors(from_bytes(data), intact=True)
        rows = artifact.report["routes"]
        module = finish.check(finish.load(artifact, caches))
    except (BridgeError, KeyError) as error:
        _log.warning("what was chosen before does not hold any more, the routes are measured again: %s", error)
        return None
    report = module.report
    notes = (*report.notes, "measured in an earlier compilation of the same model; nothing was built")
    module.set_report(dataclasses.replace(report, routes=tuple(rows), notes=notes))
    return module


def _row(lap: Lap, best: Lap, seconds: float) -> Attempt:
    chosen = lap is best
    reason = "" if chosen else f"{lap.seconds / best.seconds:.3f} times as long as {best}"
    return Attempt(lap.name, "chosen" if chosen else "slower", reason, seconds, lap.seconds * 1e3, lap.graph)
