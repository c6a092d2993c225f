"""From an artifact to a module that was seen to be right, with its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .applied import applied, require
from .asked import Options
from .backends.base import Artifact, Place
from .capture import CapturedModel
from .options import BuildOptions
from .origin import Origin
from .precision_support import check_support
from .progress import Stages
from .report import Report
from .runtime.module import TRTModule
from .verify import Row
from .verify import verify as verify_against_eager


@dataclasses.dataclass(frozen=True)
class Finish:
    """From an artifact to a verified module with a report."""

    captured: CapturedModel
    place: Place
    options: Options
    stages: Stages
    origin: Origin

    def __call__(self, artifact: Artifact) -> TRTModule:
        return self.check(self.load(artifact))

    def load(self, artifact: Artifact, caches: Sequence[torch.Tensor] = ()) -> TRTModule:
        """The module that runs ``artifact``; ``caches`` are kernels that were compiled for it before."""
        artifact = dataclasses.replace(artifact, origin=self.origin, asked=self.options.precision.to_dict())
        if self.options.source:
            from .runtime.program import store

            artifact = dataclasses.replace(artifact, source=store(self._taken(artifact).program).owned())
        with self.stages("loading"):
            return self.options.module(artifact, self.place, caches)

    def check(self, module: TRTModule) -> TRTModule:
        """Compare with eager, where that was asked for, and put all that is known into the report.

        Raises:
            PrecisionNotApplied: see :func:`.applied.require`.
            VerificationFailed: see :func:`.verify.verify`.
        """
        options, place, made = self.options, self.place, module.made
        work = self._applied(module)
        rows: tuple[Row, ...] = ()
        captured = self._taken(made)
        own = [*captured.notes, *_own_notes(options, place), *self._no_gain(work, made)]
        notes = [note for note in made.report.get("notes", ()) if note not in own] + own
        if not place.target and options.verify is not False:
            with self.stages("verifying"):
                rows = verify_against_eager(self.captured, module.run_settled, options.precision, options.tolerance)
        module.set_report(
            Report(
                backend=made.backend,
                precision=str(options.precision),
                runtime="+".join(dict.fromkeys(segment.runtime for segment in made.segments)),
                where=str(place),
                seconds=self.stages.seconds(),
                kept_fp32=made.report.get("kept_fp32", {}),
                verification=tuple(dataclasses.asdict(row) for row in rows),
                notes=tuple(notes),
                cuda_graph=module.cuda_graph,
                hybrid=self._measured(module),
                work=work,
            )
        )
        return module

    def _applied(self, module: TRTModule) -> Mapping[str, Any]:
        """What the report says of the precision that the work runs in, seen to be what was asked for."""
        made = module.made.report
        if "work_rows" not in made:
            return made.get("work", {})  # of an earlier check
        inspected = () if self.place.target else module.inspect_layers()
        found = applied(made["work_rows"], inspected, self.options.precision, self.captured.program.graph)
        if found is None:
            return {}
        require(found, self.options.build.minimum_share)
        return found.to_dict()

    def _no_gain(self, work: Mapping[str, Any], made: Artifact) -> list[str]:
        """What to say of eight bits, where the plan computes in them on the GPU here."""
        used = [name for name in ("int8", "fp8") if name in work.get("by", ())]
        if not used or self.place.target or self.place.device.type != "cuda":
            return []
        from .eight_bits import no_gain

        tf32 = bool(made.provenance.get("tf32"))
        return [note for name in used if (note := no_gain(name, self.place.device, tf32)) is not None]

    def _taken(self, made: Artifact) -> CapturedModel:
        """The captured model that ``made`` was made of."""
        return self.captured.for_route("hybrid" if made.results else made.backend)

    def _measured(self, module: TRTModule) -> dict[str, Any]:
        """What the report says of a model that was cut, with the time of each segment where they can run."""
        hybrid = dict(module.made.report.get("hybrid") or {})
        if hybrid and not self.place.target:
            with self.stages("measuring"):
                hybrid["seconds"] = module.measure_segments(self.captured.inputs)
        return hybrid


def _own_notes(options: Options, place: Place) -> list[str]:
    notes = [*check_support(options.precision, place)]
    if not place.needs_plan and options.build != BuildOptions():
        notes.append(f"TensorRT builds nothing on the CPU, so {options.build} has no effect")
    if place.target:
        notes.append("the engine was built for a GPU elsewhere and has not been run")
    elif options.verify is False:
        notes.append("verify=False: the results were not compared with the eager model's")
    return notes
