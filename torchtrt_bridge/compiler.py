"""compile() and build(): the whole data flow, on one screen.

    model, inputs -> capture -> lower -> quantize -> select a backend: cast, convert, build -> TRTModule -> verify
                  -> its report
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .asked import Options, ordinary_tensors, parse_device
from .backends.base import Place
from .capture import CapturedModel, capture
from .errors import ON_CPU, InvalidOption, RunsOnCPU, nearest
from .fastest_precision import Criterion, fastest_precision
from .finishing import Finish
from .lowering import lower
from .options import BuildOptions
from .origin import Origin
from .precision_support import check_support
from .progress import Stages
from .quantization.calibration import Calibration
from .quantization.settings import Quantization
from .registry import Snapshot, converter
from .runtime.module import TRTModule
from .selection import convert_and_check
from .tensor_digests import TensorDigests
from .tracebacks import leaves_no_memory
from .verify import Tolerance


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
        CaptureFailed, ConversionFailed, BuildFailed, PrecisionNotApplied, VerificationFailed, InvalidInput,
        InvalidOption, BackendUnavailable: see :mod:`torchtrt_bridge.errors`.

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
        known = TensorDigests()
        origin = Origin.of(model, attributes, known)
        if criterion is not None:
            ranges = _observed(captured, calibration, calibration_input, quantize, stages)

            def made(chosen: Options) -> TRTModule:
                given = (ranges, None, quantize) if chosen.precision.quantized else (None, None, None)
                quantized, chosen = with_quantization(captured, chosen, place, *given, stages)
                return make(quantized, place, chosen, stages, origin, known)

            return fastest_precision(made, options, criterion, captured, place)
        data = (calibration, calibration_input, quantize)
        captured, options = with_quantization(captured, options, place, *data, stages)
        return make(captured, place, options, stages, origin, known)


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
        data = (calibration, calibration_input, quantize)
        captured, options = with_quantization(captured, options, place, *data, stages)
        return make(captured, place, options, stages, Origin.of(model, attributes))


def make(
    captured: CapturedModel,
    place: Place,
    options: Options,
    stages: Stages,
    origin: Origin,
    known: TensorDigests | None = None,
) -> TRTModule:
    """From a captured model to a verified module: what :func:`compile`, :func:`build` and ``rebuild`` share. ``known``
    are the digests of the model's tensors, where they were made already."""
    check_support(options.precision, place)
    finish = Finish(captured, place, options, stages, origin)
    if options.backend == "fastest":
        from .fastest import fastest

        module = fastest(
            captured, options.precision, options.build, place, stages, finish, options.cuda_graph, options, known
        )
    else:
        module = convert_and_check(
            captured, options.precision, options.build, place, options.backend, stages, finish, options.hybrid
        )
    if not place.needs_plan:
        warnings.warn(ON_CPU, RunsOnCPU, stacklevel=4)
    return module


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
    if settings is not None and not isinstance(settings, Quantization):
        raise InvalidOption(f"quantize={settings!r}: give torchtrt_bridge.Quantization(...).")
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
        captured, precision = quantize(captured, precision, place, calibration, select, settings)
    return captured, dataclasses.replace(options, precision=precision)


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
