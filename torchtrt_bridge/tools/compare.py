"""ttb.compare(): which layer of a compiled module is off, by its intermediate results against eager's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..capture import CapturedModel, capture
from ..errors import EngineMismatch, InvalidInput, InvalidOption, nearest
from ..progress import Stages
from ..rebuilding import precision_of
from ..registry import Snapshot, converter
from ..reproducible import reproducible
from ..runtime.program import run_callable
from ..tracebacks import leaves_no_memory
from ..verify import DEFAULTS, TF32, Row, Tolerance, narrowest
from ..verify import compare as compare_results
from .comparison import SMALLEST_FP16, Comparison, Layer
from .debug_build import Observed, Subject, run_debug_build
from .points import Point, points
from .replay import Eager, Forced, errors_of

if TYPE_CHECKING:
    from ..runtime.module import TRTModule

LEVELS = ("module", "operator")
_OUT_OF_LINE = 8
"""A layer departs where its own error is so many times the layers' median: layers of one precision round alike, and
differ in how much of it cancels. A quarter of what the precision may cost a whole model is in line always, all of it
never."""


@leaves_no_memory
def compare(
    model: nn.Module, compiled: TRTModule, inputs: Any, *, level: str = "module", converters: Any = None
) -> Comparison:
    """Find the layer at which ``compiled`` goes wrong.

    Every intermediate result is compared twice: with eager's, and with what eager's layer makes of the *compiled*
    module's intermediate results before it. The second, the layer's own error, has no error in it that came from
    before; where it is out of line, that layer is at fault.

    Intermediate results come from a debug build, of what ``compiled`` holds: its ONNX model or cast program on the CPU,
    on a GPU the program that was kept by ``source=True``. A plan without that gives ``model`` once more to TensorRT:
    then a fault shows that TensorRT or the precision makes, and none that is in the plan's weights alone. The notes of
    the result say which it was.

    Args:
        model: the original, in eval mode; it is left as it was.
        compiled: made from ``model`` by :func:`torchtrt_bridge.compile`, or loaded from a file.
        inputs: as for :func:`torchtrt_bridge.compile`; those with which the results are off.
        level: ``"module"``: what one module hands to another; ``"operator"``: the result of every operator.
        converters: those of the compilation, where it was given any.

    Returns:
        A :class:`Comparison`: printable, a table in notebooks, ``.first``, ``.overflows``, ``.table()``, ``.plot()``.

    Raises:
        InvalidInput: the inputs do not fit, or ``compiled`` is not of such a model.
        EngineMismatch: ``compiled`` holds a plan, and there is no GPU.
        ConversionFailed, BuildFailed: the debug build fails.

    Example:
        >>> import torch, torchtrt_bridge as ttb
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval(), torch.randn(1, 4)
        >>> ttb.compare(model, ttb.compile(model, x), x).first is None
        True
    """
    from ..asked import ordinary_tensors

    _check(model, compiled, level)
    tensors = _flat(compiled, inputs)
    with Stages() as stages, ordinary_tensors():
        with stages("capturing"):
            subject = _capture(model, compiled, inputs, converter.snapshot(converters))
        captured = subject.eager
        limit = _limit(captured, compiled)
        looked_at = points(captured.program, level)
        nodes = [point.node for point in looked_at]
        observed = run_debug_build(subject, compiled, nodes, tensors, stages)
        with stages("comparing"):
            tensors = [tensor.to(captured.device) for tensor in tensors]
            expected = captured.eager(tensors)
            results = compiled.run_flat(tensors)
            layers, in_line = _layers(captured, looked_at, observed, tensors, limit)
    signature = captured.signature
    rows = [
        compare_results("the inputs", spec.name, wanted, actual, limit)
        for spec, wanted, actual in zip(signature.outputs, expected, results, strict=True)
    ]
    return Comparison(
        precision=compiled.precision,
        backend=compiled.backend,
        runtime=compiled.made.runtime,
        level=level,
        layers=layers,
        expected=in_line,
        results=tuple(rows),
        notes=(*observed.notes, *_doubts(model, compiled, observed, results, limit)),
    )


def _check(model: Any, compiled: Any, level: Any) -> None:
    from ..runtime.module import TRTModule

    if not isinstance(compiled, TRTModule):
        raise InvalidInput(f"compare() needs a compiled module second; it was given a {type(compiled).__name__}.")
    if isinstance(model, TRTModule) or not isinstance(model, nn.Module):
        raise InvalidInput(f"compare() needs the original nn.Module first; it was given a {type(model).__name__}.")
    if level not in LEVELS:
        raise InvalidOption(f"level={level!r}: there is 'module' and 'operator'.{nearest(str(level), LEVELS)}")


def _flat(compiled: TRTModule, inputs: Any) -> list[torch.Tensor]:
    """The inputs of this call, flat, in the order of the module's signature."""
    args = () if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    return compiled.signature.bind(args, dict(inputs) if isinstance(inputs, Mapping) else {})


def _capture(model: nn.Module, compiled: TRTModule, inputs: Any, registered: Snapshot) -> Subject:
    """``model``, captured with the dynamic dims of ``compiled``.

    Raises:
        InvalidInput: its inputs or results are others than those of ``compiled``.
    """
    signature = compiled.signature
    dynamic = {
        spec.name: {axis: signature.dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in signature.inputs
    }
    shapes = {name: axes for name, axes in dynamic.items() if axes} or None
    captured = capture(model, inputs, dynamic_shapes=shapes)
    for own, other in ((captured.signature.inputs, signature.inputs), (captured.signature.outputs, signature.outputs)):
        if [(s.name, s.dtype, len(s.shape)) for s in own] != [(s.name, s.dtype, len(s.shape)) for s in other]:
            raise InvalidInput(
                f"The compiled module is not of this model: it has {', '.join(map(repr, other))}, and the model"
                f" {', '.join(map(repr, own))}."
            )
    taken = captured
    if registered.of_python:
        taken = capture(model, inputs, dynamic_shapes=shapes, converters=registered)
    return Subject(captured, taken, registered)


def _limit(captured: CapturedModel, compiled: TRTModule) -> Tolerance:
    name = narrowest(captured, precision_of(compiled.made))
    return TF32 if name == "fp32" and compiled.provenance.get("tf32") else DEFAULTS[name]


def _layers(
    captured: CapturedModel,
    looked_at: Sequence[Point],
    observed: Observed,
    tensors: Sequence[torch.Tensor],
    limit: Tolerance,
) -> tuple[tuple[Layer, ...], float]:
    """A row for each point, and the error of its own up to which a layer is in line."""
    program = run_callable(captured.program)
    eager = Eager(program.graph, {point.node for point in looked_at})
    forced = Forced(program.graph, observed.tensors)
    with reproducible(captured.device):
        eager.run(*program.arguments(tensors), enable_io_processing=False)
        forced.run(*program.arguments(tensors), enable_io_processing=False)
    seen = [point for point in looked_at if point.node in observed.tensors]
    errors = [error for error, _ in forced.own.values() if math.isfinite(error)]
    usual = _OUT_OF_LINE * statistics.median(errors) if errors else 0.0
    in_line = max(limit.relative_l2 / 4, min(usual, limit.relative_l2))
    layers = []
    for point in seen:
        wanted, actual = eager.tensors[point.node], observed.tensors[point.node].cpu()
        own, made_nonfinite = forced.own[point.node]
        largest, relative, cosine, nonfinite = errors_of(actual, wanted)
        layers.append(
            Layer(
                place=point.place,
                operator=point.operator,
                shape=tuple(wanted.shape),
                max_error=largest,
                relative_l2=relative,
                cosine=cosine,
                own_error=own,
                largest=_largest(wanted),
                largest_compiled=_largest(actual),
                nonfinite=nonfinite,
                subnormal=_subnormal(wanted),
                departs=made_nonfinite or own > in_line,
            )
        )
    return tuple(layers), in_line


def _largest(tensor: torch.Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _subnormal(tensor: torch.Tensor) -> float:
    sizes = tensor[tensor != 0].abs()
    return (sizes < SMALLEST_FP16).double().mean().item() if sizes.numel() else 0.0


def _doubts(
    model: nn.Module, compiled: TRTModule, observed: Observed, results: Sequence[torch.Tensor], limit: Tolerance
) -> list[str]:
    """Where the debug build is not what ``compiled`` is."""
    doubts = []
    plan_alone = compiled.made.source is None and (compiled.made.runtime == "tensorrt" or compiled.made.results)
    if plan_alone and not _has_its_weights(compiled, model):
        doubts.append(
            "the module was built from other weights than this model's, which cannot be located in a plan: compile with"
            " source=True, and compare again"
        )
    for spec, built, own in zip(compiled.signature.outputs, observed.results, results):
        row: Row = compare_results("the inputs", spec.name, own.cpu(), built.cpu(), limit)
        if not row.passed:
            doubts.append(f"the debug build's own results are not the module's ({row}): the layers may be others")
    return doubts


def _has_its_weights(compiled: TRTModule, model: nn.Module) -> bool:
    try:
        return compiled.matches(model)
    except EngineMismatch:  # saved without a digest
        return True
