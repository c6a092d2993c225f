"""compile() and build(): the whole data flow, on one screen.

    model, inputs -> capture -> lower -> quantize -> select a backend: cast, convert, build -> TRTModule -> verify
                  -> its report
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .applied import applied, require
from .backends.base import Artifact, Place
from .backends.torch_tensorrt_settings import check_route
from .capture import CapturedModel, capture
from .errors import ON_CPU, DeviceMismatch, InvalidOption, RunsOnCPU, nearest
from .fastest_precision import Criterion, fastest_precision
from .lowering import lower
from .options import BuildOptions
from .origin import Origin
from .precision import Precision
from .precision_support import check_support
from .progress import Stages
from .quantization.calibration import Calibration
from .quantization.settings import Quantization
from .registry import Snapshot, converter
from .report import Report
from .runtime.module import TRTModule
from .selection import candidates, convert_and_check
from .tracebacks import leaves_no_memory
from .verify import TF32, Row, Tolerance
from .verify import verify as verify_against_eager

_log = logging.getLogger("torchtrt_bridge")


@leaves_no_memory
def compile(
    model: nn.Module,
    inputs: Any,
    precision: Any = "fp32",
    *,
    backend: str = "auto",
    dynamic_shapes: Any = None,
    dynamic_batch: tuple[int, int, int] | None = None,
    device: torch.device | str | None = None,
    calibration: Any = None,
    calibration_input: Any = None,
    quantize: Quantization | None = None,
    max_error: float | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    metric_target: float | None = None,
    verify: bool | Tolerance = True,
    build: BuildOptions | None = None,
    hybrid: bool | str = "auto",
    source: bool = False,
    max_contexts: int = 8,
    cuda_graph: bool | str = "auto",
    max_graphs: int = 4,
    attributes: Sequence[str] | None = None,
    converters: Any = None,
    **unknown: Any,
) -> TRTModule:
    """A drop-in module that runs ``model`` on TensorRT.

    Args:
        model: in eval mode. It is left as it was.
        inputs: what the model is called with: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. Their shapes are fixed unless made dynamic below.
        precision: ``"fp32"`` (true fp32), ``"fp16"``, ``"bf16"``, or, with ``calibration``, ``"int8"`` or ``"fp8"``.
            Inputs and results keep the model's dtypes. A mapping gives layers their own: ``{"default": "fp16",
            "encoder.layer.0": "fp32", "head.*": "fp32", nn.Conv2d: "bf16", re.compile("blocks.[01]"): "fp32"}``;
            the innermost module that a key names decides (see :mod:`torchtrt_bridge.layer_rules`). ``"fastest"``: the
            one of fp32, TF32, bf16, fp16, and with ``calibration`` fp8 and int8, that is measured to be fastest here
            and meets ``max_error`` or ``metric_target``.
        backend: ``"auto"`` (the first route that converts and verifies), ``"fastest"`` (every route that can, measured
            here; the choice is kept for the next compilation of the same model) or a route's name.
        dynamic_shapes: ``{input name: {axis: Dim(min, opt, max)}}``; nested inputs by dotted names or nested alike.
        dynamic_batch: ``(min, opt, max)``, the short form for axis 0 of every input with the first one's batch size.
        calibration: for int8 and fp8, data that shows the ranges of the model's activations: a DataLoader, another
            iterable or a dataset of what the model is called with (some hundred examples), or the
            :class:`Calibration` that :func:`calibrate` made of such data.
        calibration_input: picks what the model is called with from a batch that holds more (labels): a function, or the
            index or key of it.
        quantize: settings of int8 and fp8.
        max_error: for ``precision="fastest"``: the largest relative L2 error against the eager model.
        metric, metric_target: for ``precision="fastest"`` instead: a function of a module that is called as the model
            is, and the least that it may be; more is better.
        device: where the result runs; None means where the model's parameters are. On the CPU, ONNX Runtime or
            PyTorch runs it, with a :class:`~torchtrt_bridge.errors.RunsOnCPU` warning.
        verify: compare with the eager model at the example's sizes and at the ends of every dynamic range. True takes
            the precision's default :class:`~torchtrt_bridge.Tolerance`; False skips it, and the report says so.
        build: settings of TensorRT's builder.
        hybrid: ``"auto"``: a model that no route takes whole is cut, and PyTorch runs the parts that TensorRT does not
            take; ``"allow_torch"``: even if that is all of it, and what TensorRT computes wrongly too; True: cut, also
            where a route takes it whole; False: never, so that such a model is an error.
        source: keep the captured program in the module and its file, so that :meth:`TRTModule.rebuild` can build it
            again for another TensorRT or GPU. Adds the model's size to the file.
        max_contexts, cuda_graph, max_graphs: see :class:`TRTModule`.
        attributes: names of the model's attributes to copy, such as ``("config", "num_classes")``: plain data, which
            is saved with the module. None means those that ``transformers`` and ``timm`` read, where there are any.
        converters: converters for this call alone (see :data:`torchtrt_bridge.converter`), before those registered.

    Returns:
        An ``nn.Module`` with the model's call signature, results and dtypes.

    Raises:
        CaptureFailed, ConversionFailed, BuildFailed, VerificationFailed, InvalidInput, InvalidOption,
        BackendUnavailable: see :mod:`torchtrt_bridge.errors`.

    Example:
        >>> import torch, torchtrt_bridge as ttb
        >>> model = torch.nn.Linear(4, 2).eval()
        >>> fast = ttb.compile(model, torch.randn(1, 4), dynamic_batch=(1, 8, 32))  # doctest: +SKIP
    """
    _refuse_unknown(compile, unknown)
    wanted = parse_device(device)
    criterion = Criterion.of(precision, max_error, metric, metric_target, verify)
    options = Options.parse(
        "fp32" if criterion else precision,
        backend, build, verify, source, max_contexts, cuda_graph, max_graphs, hybrid,
    )  # fmt: skip
    registered = converter.snapshot(converters)
    with Stages() as stages, ordinary_tensors():
        captured = _capture(model, inputs, dynamic_shapes, dynamic_batch, registered, stages)
        place = Place(wanted or captured.device)
        origin = Origin.of(model, attributes)
        if criterion is not None:
            ranges = _observed(captured, calibration, calibration_input, quantize, stages)

            def made(chosen: Options) -> TRTModule:
                given = (ranges, None, quantize) if chosen.precision.quantized else (None, None, None)
                quantized, chosen = with_quantization(captured, chosen, place, *given, stages)
                return make(quantized, place, chosen, stages, origin)

            return fastest_precision(made, options, criterion, captured, place)
        captured, options = with_quantization(
            captured, options, place, calibration, calibration_input, quantize, stages
        )
        return make(captured, place, options, stages, origin)


@leaves_no_memory
def build(
    model: nn.Module,
    inputs: Any,
    precision: Any = "fp32",
    *,
    target: str | None = None,
    backend: str = "auto",
    dynamic_shapes: Any = None,
    dynamic_batch: tuple[int, int, int] | None = None,
    calibration: Any = None,
    calibration_input: Any = None,
    quantize: Quantization | None = None,
    build: BuildOptions | None = None,
    hybrid: bool | str = "auto",
    source: bool = False,
    max_contexts: int = 8,
    cuda_graph: bool | str = "auto",
    max_graphs: int = 4,
    attributes: Sequence[str] | None = None,
    converters: Any = None,
    **unknown: Any,
) -> TRTModule:
    """Build the TensorRT engine for a GPU that this machine does not have, to be saved here and loaded there.

    Args:
        target: the GPU's compute capability, as ``"sm89"``; None means every GPU that the flavour's portable plans
            run on (RTX: sm80 and later). ``torchtrt_bridge.targets()`` lists what the flavour here can name.

    The other arguments are those of :func:`compile`. The engine is not run, and the report says so: what can be
    verified here is ``compile(..., device="cpu")``.

    Raises:
        InvalidOption: the flavour cannot build for that target, or not without a GPU.
    """
    _refuse_unknown(globals()["build"], unknown)
    options = Options.parse(
        precision, backend, build, False, source, max_contexts, cuda_graph, max_graphs, hybrid
    )
    registered = converter.snapshot(converters)
    with Stages() as stages, ordinary_tensors():
        captured = _capture(model, inputs, dynamic_shapes, dynamic_batch, registered, stages)
        place = Place(torch.device("cpu"), target or "portable")
        captured, options = with_quantization(
            captured, options, place, calibration, calibration_input, quantize, stages
        )
        return make(captured, place, options, stages, Origin.of(model, attributes))


def parse_device(device: Any) -> torch.device | None:
    """The device that the user asked for; None where none was.

    Raises:
        InvalidOption: it is neither a GPU nor the CPU.
        DeviceMismatch: it is a GPU, and there is none.
    """
    try:
        wanted = torch.device(device) if device is not None else None
    except (RuntimeError, TypeError):
        raise InvalidOption(f"device={device!r}: a compiled module runs on 'cuda' or 'cpu'.") from None
    if wanted is not None and wanted.type not in ("cpu", "cuda"):
        raise InvalidOption(f"device={str(wanted)!r}: a compiled module runs on 'cuda' or 'cpu'.")
    if wanted is not None and wanted.type == "cuda" and not torch.cuda.is_available():
        raise DeviceMismatch(
            f"device={str(wanted)!r}, but torch finds no CUDA device here. To build an engine for a GPU elsewhere, use"
            " torchtrt_bridge.build(model, inputs, precision, target=...)."
        )
    return wanted


@dataclasses.dataclass(frozen=True)
class Options:
    """What :func:`compile`, :func:`build` and ``rebuild`` have in common, checked before any work is done."""

    precision: Precision
    backend: str
    build: BuildOptions
    verify: bool | Tolerance
    source: bool
    max_contexts: int
    cuda_graph: bool | str = "auto"
    max_graphs: int = 4
    hybrid: bool | str = "auto"

    @classmethod
    def parse(
        cls,
        precision: Any,
        backend: Any,
        build: Any,
        verify: Any,
        source: bool,
        max_contexts: Any,
        cuda_graph: Any = "auto",
        max_graphs: Any = 4,
        hybrid: Any = "auto",
    ) -> Options:
        """Raises InvalidOption for a value that none of them can have."""
        if build is not None and not isinstance(build, BuildOptions):
            raise InvalidOption(f"build={build!r}: give torchtrt_bridge.BuildOptions(...).")
        if not isinstance(verify, (bool, Tolerance)):
            raise InvalidOption(f"verify={verify!r}: give True, False or torchtrt_bridge.Tolerance(...).")
        if not isinstance(hybrid, bool) and hybrid not in ("auto", "allow_torch"):
            raise InvalidOption(f"hybrid={hybrid!r}: give 'auto', 'allow_torch', True or False.")
        candidates(backend)
        if build is not None:
            check_route(build.torch_tensorrt, backend)
        TRTModule(max_contexts=max_contexts, cuda_graph=cuda_graph, max_graphs=max_graphs)
        build = build or BuildOptions()
        parsed = Precision.parse(precision)
        return cls(parsed, backend, build, verify, source, max_contexts, cuda_graph, max_graphs, hybrid)

    def module(self, artifact: Artifact, place: Place, caches: Sequence[torch.Tensor] = ()) -> TRTModule:
        """The module that runs ``artifact`` where it is to run."""
        return TRTModule(
            None if place.target else place.device,
            max_contexts=self.max_contexts,
            cuda_graph=self.cuda_graph,
            max_graphs=self.max_graphs,
            _artifact=artifact,
            _caches=caches,
        )

    @property
    def tolerance(self) -> Tolerance | None:
        """The limits of the verification where they are not the precision's own."""
        if isinstance(self.verify, Tolerance):
            return self.verify
        return TF32 if self.build.tf32 and self.precision.narrowest == "fp32" else None


@contextlib.contextmanager
def ordinary_tensors() -> Iterator[None]:
    """No autocast, nor anything else of the caller's that would go into the engine. What is made here outlives the
    caller's torch.inference_mode(), so its tensors must not be made inside it."""
    without_autocast = (torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda"))
    with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as stack:
        for context in without_autocast:
            stack.enter_context(context)
        yield


def make(captured: CapturedModel, place: Place, options: Options, stages: Stages, origin: Origin) -> TRTModule:
    """From a captured model to a verified module: what :func:`compile`, :func:`build` and ``rebuild`` share."""
    check_support(options.precision, place)
    finish = Finish(captured, place, options, stages, origin)
    if options.backend == "fastest":
        from .fastest import fastest

        module = fastest(
            captured, options.precision, options.build, place, stages, finish, options.cuda_graph, options
        )
    else:
        module = convert_and_check(
            captured, options.precision, options.build, place, options.backend, stages, finish, options.hybrid
        )
    if not place.needs_plan:
        warnings.warn(ON_CPU, RunsOnCPU, stacklevel=4)
    return module


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


def _capture(
    model: nn.Module, inputs: Any, dynamic_shapes: Any, dynamic_batch: Any, registered: Snapshot, stages: Stages
) -> CapturedModel:
    with stages("capturing"):
        captured = capture(
            model, inputs, dynamic_shapes=dynamic_shapes, dynamic_batch=dynamic_batch, converters=registered
        )
    with stages("lowering"):
        return lower(captured, registered)


def _observed(
    captured: CapturedModel, calibration: Any, select: Any, settings: Quantization | None, stages: Stages
) -> Calibration | None:
    """The calibration that several precisions are to share: data may be gone once it was read."""
    if settings is not None and settings.weight_only is not None:
        raise InvalidOption("quantize=Quantization(weight_only=...) is for a precision by name, not for 'fastest'.")
    if calibration is None or isinstance(calibration, Calibration):
        return calibration
    from .quantization.calibrating import observe

    with stages("calibrating"):
        return observe(captured, calibration, select, settings.batches if settings is not None else None)


def with_quantization(
    captured: CapturedModel,
    options: Options,
    place: Place,
    calibration: Any,
    select: Any,
    settings: Any,
    stages: Stages,
) -> tuple[CapturedModel, Options]:
    """The captured model with its quantization written into its program, and the options with what that decided."""
    from .quantization.stage import quantize

    with stages("quantizing"):
        precision = options.precision.bind(captured.program.graph, captured.model)
        check_support(precision, place)
        quantized, precision = quantize(captured, precision, place, calibration, select, settings)
    if quantized.program is not captured.program:  # which other forms of the program are not
        left_out = [_LEFT_OUT] if captured.calls or captured.routes else []
        notes = (*quantized.notes, *left_out)
        quantized = dataclasses.replace(quantized, formed=None, calls={}, routes={}, notes=notes)
    return quantized, dataclasses.replace(options, precision=precision)


_LEFT_OUT = (
    "converters' TensorRT and ONNX forms, and converters of some routes only, take no part in a quantized program; ATen"
    " forms of all routes do"
)


def _refuse_unknown(function: Any, unknown: dict[str, Any]) -> None:
    """Unknown options are an error that names the nearest right one, as all else that cannot be honoured."""
    if not unknown:
        return
    name = next(iter(unknown))
    options = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [field.name for field in dataclasses.fields(BuildOptions)]
    if name in fields:
        raise InvalidOption(f"{name!r} is a setting of the build: give build=BuildOptions({name}={unknown[name]!r}).")
    raise InvalidOption(
        f"{function.__name__}() has no option {name!r}.{nearest(name, options + fields)} It has"
        f" {', '.join(options[2:])}."
    )
