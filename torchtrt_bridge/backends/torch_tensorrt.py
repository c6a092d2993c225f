"""The Torch-TensorRT route: captured program -> cast program -> its lowering and converters -> TensorRT's builder.

On the CPU the cast program runs in PyTorch, once Torch-TensorRT's converters are seen to take all of it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from ..capture import CapturedModel
from ..crossing import calls_of, stays
from ..errors import UnsupportedLayer
from ..forms import FormCall, call_of
from ..layer_forms import makes_layers, refusal, summary, unserved
from ..lowering import serving
from ..options import BuildOptions
from ..precision import Precision, cast_program
from ..signature import Signature, TensorSpec
from .base import Artifact, Place, Segment, Served, Support
from .interface import builder_settings, input_names, output_names, plan_provenance, profile, unknown_dtypes
from .torch_tensorrt_foreign import foreign, without
from .torch_tensorrt_settings import check_names

#: The distributions that bring the module, and the TensorRT that each is made for.
_DISTRIBUTIONS = {"torch-tensorrt-rtx": "tensorrt_rtx", "torch-tensorrt": "tensorrt"}


class TorchTensorRTBackend:
    """See the module's docstring."""

    name = "torch_tensorrt"

    def supports(self, captured: CapturedModel, place: Place) -> Support:
        """Whether the package is there and fits, and the forms of converters; operators are what :meth:`refusals` is
        for."""
        unusable = [*_unusable(place)]
        unknown = unknown_dtypes(captured.signature) if place.needs_plan else ()
        unfit = unserved(captured, lambda call: self.served(call, place)) if not unusable else ()
        reasons = (*unusable, *unknown, *unfit)
        return Support(self.name, not reasons, reasons, missing=bool(unusable))

    def refusals(self, program: ExportedProgram, place: Place) -> dict[str, str]:
        """The nodes that no converter takes, by name, and why; the program is neither run nor changed.

        Raises:
            BackendUnavailable: Torch-TensorRT is missing or broken.
            ConversionFailed: its lowering fails, so that it has no answer.
        """
        from ..runtime.program import store
        from .torch_tensorrt_worker import ask

        job = {"kind": "refusals", "settings": {}, "capability": _capability(place)}
        own = foreign(program)
        served = {node.name for node in program.graph.nodes if call_of(node.target) is not None}
        rest = without(program, own) if own else program
        refused: Mapping[str, str] = {}
        if rest.graph_signature.output_specs:  # else nothing else is computed
            refused = ask(job, store(rest), _bound(), device=_gpu(place), tensors=False)
        return {**refused, **{name: reason for name, reason in own.items() if name not in served}}

    def served(self, call: FormCall, place: Place) -> Served:
        """The TensorRT form in a plan, where it fits and can be handed to Torch-TensorRT's process."""
        assert call.registration is not None
        if not place.needs_plan:
            return Served(None)
        if makes_layers(call, _bound()):
            reason = stays(call)
            return Served("tensorrt") if reason is None else Served(None, reason)
        return Served(None, refusal(call.registration, _bound()) or "")

    def convert(
        self,
        captured: CapturedModel,
        precision: Precision,
        build: BuildOptions,
        place: Place,
        progress: Callable[[str, float], None],
    ) -> Artifact:
        """See :meth:`.base.Backend.convert`."""
        check_names(build.torch_tensorrt)
        served = {call: self.served(call, place) for call in captured.calls.values()}
        taken = [call for call, answer in served.items() if answer.form is not None]
        program, notes = serving(captured, lambda call: call in taken), summary(taken)
        reasons = dict.fromkeys(answer.reason for answer in served.values() if answer.reason)
        notes += [f"{reason}: Torch-TensorRT converts its ATen form" for reason in reasons]
        cast = cast_program(program, precision)
        wires = tuple(input_names(captured.signature)), tuple(output_names(captured.signature))
        work: list[dict[str, Any]] = []
        if place.needs_plan:
            built = build_plan(cast.program, captured.signature, build, place, progress)
            segment = Segment("tensorrt", *wires, engine=built.engine)
            made = plan_provenance(
                built.flavor, built.version, built.target, sum(built.layers.values()), build, place
            )
            made["torch_tensorrt"] = built.torch_tensorrt
            work = built.work
        else:
            from ..runtime.program import store

            if refused := self.refusals(cast.program, place):
                raise UnsupportedLayer(_all(refused, cast.program))
            segment = Segment("torch", *wires, program=store(cast.program).owned())
            made = {}
            notes.append("Torch-TensorRT would take every operator; on the CPU, PyTorch runs the cast program")
        return Artifact(
            segments=(segment,),
            signature=captured.signature,
            backend=self.name,
            precision=precision.name,
            constants=captured.constants,
            provenance={"torch": torch.__version__, **made},
            report={
                "kept_fp32": {op: list(places) for op, places in cast.kept.items()},
                "notes": [*cast.notes, *notes],
                "work_rows": work,
            },
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """A plan and what it was built from: ``layers`` and ``types`` count the layers of TensorRT's network and the dtypes
    of what they make, ``results`` has the dtype of each result by name (in TensorRT's words: ``"FLOAT"``), ``work`` has
    the fields of :class:`~torchtrt_bridge.trt.work.Work`."""

    engine: torch.Tensor = dataclasses.field(repr=False)
    flavor: str
    version: str
    torch_tensorrt: str
    target: str | None
    layers: Mapping[str, int]
    types: Mapping[str, int]
    results: Mapping[str, str]
    work: list[dict[str, Any]]
    warnings: list[str]
    convert_seconds: float
    build_seconds: float


def build_plan(
    program: ExportedProgram,
    signature: Signature,
    build: BuildOptions,
    place: Place,
    progress: Callable[[str, float], None],
) -> Built:
    """The plan of a cast program.

    Raises:
        UnsupportedLayer, ConversionFailed, BuildFailed, BuildCrashed, InvalidOption, BackendUnavailable.
    """
    from ..runtime.program import store
    from ..trt.build import own_errors, prepare
    from ..trt.request import Request
    from .torch_tensorrt_worker import ask

    stored = store(program)
    with own_errors():
        request, bound = prepare(
            Request(
                b"",
                profile(signature),
                target=None if place.target in (None, "portable") else place.target,
                **builder_settings(build),
            ),
            on_gpu=torch.cuda.is_available(),
        )
    plain = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    if request.timing_cache is not None:
        plain["timing_cache"] = str(pathlib.Path(request.timing_cache).absolute())
    job = {
        "kind": "plan",
        "request": {k: v for k, v in plain.items() if k not in ("model", "initializers", "fill", "edit")},
        "settings": dict(build.torch_tensorrt),
        "capability": _capability(place),
        "calls": calls_of(program),
        "inputs": [(spec.name, spec.dtype, _shape(spec)) for spec in signature.inputs],
        "outputs": [(n, spec.dtype, _shape(spec)) for n, spec in zip(output_names(signature), signature.outputs)],
    }
    return ask(job, stored, bound, device=_gpu(place), tf32=build.tf32, progress=progress, read=_read)


def _shape(spec: TensorSpec) -> list[int]:
    """-1 for a size that is not fixed, as TensorRT has it."""
    return [-1 if isinstance(size, str) else size for size in spec.shape]


def _read(folder: pathlib.Path, answer: Mapping[str, Any]) -> Built:
    path = folder / "plan"
    engine = torch.empty(path.stat().st_size, dtype=torch.uint8)
    with open(path, "rb") as file:
        file.readinto(engine.numpy().data)
    return Built(engine, **answer)


def _bound() -> Any:
    from ..trt.targets import installed

    return installed()


def _gpu(place: Place) -> int | None:
    """The GPU that Torch-TensorRT's process may use: the place's, or, for a plan that runs elsewhere, the current."""
    if not torch.cuda.is_available():
        return None
    return place.device.index if place.device.index is not None else torch.cuda.current_device()


def _capability(place: Place) -> tuple[int, int]:
    """The compute capability of the GPU that the plan is for; of a portable plan, Ampere's."""
    if place.target is not None and place.target != "portable":
        number = place.target.removeprefix("sm")
        if number.isdecimal() and len(number) > 1:
            return int(number[:-1]), int(number[-1])
    if place.target is None and place.device.type == "cuda":
        return torch.cuda.get_device_capability(place.device)
    return 8, 0


def _unusable(place: Place) -> list[str]:
    """Why Torch-TensorRT cannot be used here. It is not imported for that: see :mod:`.torch_tensorrt_worker`."""
    if importlib.util.find_spec("torch_tensorrt") is None:
        return ["torch_tensorrt is not installed; pip install torch-tensorrt-rtx (or torch-tensorrt)"]
    found = {name: d for name in _DISTRIBUTIONS if (d := _distribution(name)) is not None}
    if not found:
        return []
    name, distribution = next(iter(found.items()))
    reasons = []
    for needed in distribution.requires or ():
        if (clash := _clash(needed)) is not None:
            reasons.append(f"{name} {distribution.version} needs {clash}")
    try:
        bound = _bound()
    except Exception as error:  # no TensorRT at all
        return [*reasons, str(error).splitlines()[0]]
    if bound.name != _DISTRIBUTIONS[name]:
        reasons.append(
            f"{name} is made for {_DISTRIBUTIONS[name]}, and this process uses {bound.name}; the environment variable"
            f" TORCHTRT_BRIDGE_TENSORRT={_DISTRIBUTIONS[name]} picks the other"
        )
    elif place.needs_plan and not bound.can_build_without_gpu and not torch.cuda.is_available():
        reasons.append(f"{bound.name} {bound.version} builds only where there is a GPU")
    return reasons


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _clash(needed: str) -> str | None:
    """``torch<2.15.0,>=2.14.0, and 2.11.0 is here`` where the torch here does not fit; None where it does."""
    from packaging.requirements import Requirement

    requirement = Requirement(needed)
    if requirement.name != "torch" or requirement.marker is not None:
        return None
    here = torch.__version__.partition("+")[0]
    fits = requirement.specifier.contains(here, prereleases=True)
    return None if fits else f"{requirement}, and {here} is here"


def _all(refused: Mapping[str, str], program: ExportedProgram) -> str:
    """Every reason once, with the first module it comes from."""
    places: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.name in refused:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            module = stack[-1][0].removeprefix("model").removeprefix(".") if stack else ""
            places.setdefault(refused[node.name], module or "the top module")
    reasons = [f"{reason} (in {module})" for reason, module in places.items()]
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return f"{'; '.join(reasons[:3])}{more}."


