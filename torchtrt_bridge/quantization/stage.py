"""The stage between capture and the routes: a captured model in, one whose program is quantized out."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ..backends.base import Place
from ..batch_norm import fold_batch_norm
from ..capture import CapturedModel
from ..errors import InvalidOption
from ..fx_nodes import operator_name
from ..precision import Precision
from ..precision_support import no_fp8_convolutions
from .calibrating import constant_in, digest, observe, quantizable
from .calibration import Calibration
from .foreign import normalized
from .formats import FORMATS, Format
from .graph import is_quantized
from .naming import tensor_names
from .old_tables import batches_of, is_calibrator
from .placement import CONVOLUTIONS, Placement, placements
from .settings import Quantization
from .smoothing import smoothing
from .writing import Writer, tensor_of

_LEFT_OUT = (
    "converters' TensorRT and ONNX forms, and converters of some routes only, take no part in a quantized program; ATen"
    " forms of all routes do"
)


def quantize(
    captured: CapturedModel,
    precision: Precision,
    place: Place,
    calibration: Any = None,
    select: Any = None,
    settings: Quantization | None = None,
) -> tuple[CapturedModel, Precision]:
    """``captured`` as ``precision`` needs it: with Q/DQ in its program, or as it is, where it holds them already; and
    the precision with what is not quantized decided.

    Args:
        calibration: a :class:`Calibration`, the data for one, or an object in the style of ``IInt8Calibrator``.
        select: see :func:`.calibrating.calibrate`.

    Raises:
        InvalidOption: int8 or fp8 without data to calibrate with, or with nothing to quantize; settings where nothing
            is quantized.
        InvalidInput, CalibrationMismatch: the data, or the calibration, is not for this model.
    """
    if settings is not None and not isinstance(settings, Quantization):
        raise InvalidOption(f"quantize={settings!r}: give torchtrt_bridge.Quantization(...).")
    if settings is not None or calibration is not None:
        _refuse_unused(precision, calibration, settings)
    settings = settings or Quantization()
    captured = _with_program(captured, normalized(captured.program))
    precision = precision.at(place.needs_plan, settings.other)
    if settings.weight_only is not None:
        return _weights_written(captured, settings), precision
    if not precision.quantized:
        return captured, precision
    if is_quantized(captured.program):
        return captured, precision
    if calibration is None:
        raise InvalidOption(
            f"precision={precision.name!r} needs the ranges of the model's activations, which only data shows. Give"
            " calibration=, a DataLoader or another iterable of what the model is called with (some hundred examples),"
            " or a Calibration that was saved. A model that is quantized already needs none."
        )
    if isinstance(calibration, Calibration):
        calibration.check(digest(captured.program))
    elif is_calibrator(calibration):
        calibration = _of_calibrator(captured, calibration, settings)
    else:
        calibration = observe(captured, calibration, select, settings.batches)
    lost = no_fp8_convolutions() if place.needs_plan else ""
    return _written(captured, precision, calibration, settings, lost), precision


def _with_program(captured: CapturedModel, program: ExportedProgram) -> CapturedModel:
    """``captured`` with another program; the other forms of the old one, which converters gave it, are gone with it."""
    if program is captured.program:
        return captured
    notes = [*captured.notes, *([_LEFT_OUT] if captured.calls or captured.routes else [])]
    return dataclasses.replace(captured, program=program, formed=None, calls={}, routes={}, notes=tuple(notes))


def any_ranges(program: ExportedProgram) -> Calibration:
    """A calibration that knows every tensor of ``program``, for who only asks where its quantization is."""
    program = quantizable(program)
    return Calibration({}, ranges=dict.fromkeys(tensor_names(program.graph, constant_in(program)).values(), 1.0))


def _refuse_unused(precision: Precision, calibration: Any, settings: Quantization | None) -> None:
    """Raise where data or settings are given that nothing would heed."""
    given = "calibration" if calibration is not None else "quantize"
    weights = settings is not None and settings.weight_only is not None
    if weights and (precision.quantized or calibration is not None):
        given = "calibration=" if calibration is not None else f"precision={precision.narrowest!r}"
        raise InvalidOption(
            f"Quantization(weight_only=...) leaves the activations alone, and {given} is about them. Give"
            " precision='fp16' and no data, or leave weight_only out."
        )
    if not weights and not precision.quantized:
        raise InvalidOption(
            f"{given}= is for precision='int8' and 'fp8', and for quantize=Quantization(weight_only=...); this is"
            f" {precision.name!r}."
        )


def _of_calibrator(captured: CapturedModel, calibrator: Any, settings: Quantization) -> Calibration:
    """The ranges in the cache of an ``IInt8Calibrator``; else what its batches show, which then goes into its cache."""
    cache = calibrator.read_calibration_cache()
    if cache:
        return Calibration.from_table(bytes(cache))
    made = observe(captured, batches_of(calibrator, captured), limit=settings.batches)
    if callable(getattr(calibrator, "write_calibration_cache", None)):
        calibrator.write_calibration_cache(made.to_table(settings))
    return made


def _written(
    captured: CapturedModel, precision: Precision, calibration: Calibration, settings: Quantization, lost: str
) -> CapturedModel:
    """``captured`` with the pairs that ``settings`` place, by the ranges of ``calibration``; without those of fp8
    convolutions, where ``lost`` says why they are not to be."""
    spelled = quantizable(captured.program)
    names = {node.name: name for node, name in tensor_names(spelled.graph, constant_in(spelled)).items()}
    program = spelled if settings.attention else fold_batch_norm(captured.program)
    kept = [node for node in program.graph.nodes if lost and _in_fp8(node, precision)]
    chosen = placements(
        program.graph,
        constant_in(program),
        attention=settings.attention,
        last_layer=settings.last_layer,
        wanted=lambda node: precision.of(node) in FORMATS and node not in kept,
    )
    if not chosen:
        why = f" {lost}." if kept else ""
        raise InvalidOption(
            f"Nothing in the model is quantized to {precision.narrowest}: it has no convolution or linear layer besides"
            f" those that make its results, which are only with quantize=Quantization(last_layer=True).{why}"
        )
    if kept:
        note = f"convolutions that stay out of fp8: {len(kept)}. {lost}"
        captured = dataclasses.replace(captured, notes=(*captured.notes, note))
    weights = {p.weight.name: tensor_of(program, p.weight.name) for p in chosen if p.weight is not None}
    divisors: dict[Node, torch.Tensor] = {}
    if settings.smooth:
        uneven = {tensor for place in chosen if precision.of(place.node) != "int8" for tensor in place.activations}
        divisors = smoothing(chosen, calibration, names, weights, settings.smooth)
        divisors = {tensor: divisor for tensor, divisor in divisors.items() if tensor not in uneven}
    amax: dict[tuple[Node, Format], float] = {}
    for place, form in ((place, FORMATS[precision.of(place.node)]) for place in chosen):
        for tensor in place.activations:
            name = names[tensor.name]
            if tensor in divisors:
                channels = calibration.histograms[name].channels
                assert channels is not None
                amax[tensor, form] = (channels / divisors[tensor].cpu()).max().item()
            elif (tensor, form) not in amax:
                amax[tensor, form] = calibration.range(name, form, settings, tensor.name)
    writer = Writer(program)
    for place in chosen:
        writer.quantize(place, FORMATS[precision.of(place.node)], amax, divisors)
    return _with_program(captured, writer.finish())


def _in_fp8(node: Node, precision: Precision) -> bool:
    """Whether ``node`` is a convolution that was asked to be in fp8."""
    return node.op == "call_function" and operator_name(node) in CONVOLUTIONS and precision.of(node) == "fp8"


def _weights_written(captured: CapturedModel, settings: Quantization) -> CapturedModel:
    """``captured`` with the weights of its linear layers stored in ``settings.weight_only``.

    Raises:
        InvalidOption: there is no linear layer, or none whose rows are whole groups.
    """
    assert settings.weight_only is not None
    program = fold_batch_norm(captured.program)
    group = settings.group if settings.weight_only == "int4" else None
    chosen = [
        place
        for place in placements(program.graph, constant_in(program), last_layer=True)
        if place.weight is not None and _takes_weights_only(place, group)
    ]
    if not chosen:
        rows = f" with rows of whole groups of {group} weights" if group else ""
        raise InvalidOption(
            f"quantize=Quantization(weight_only={settings.weight_only!r}): the model has no linear layer{rows}."
        )
    writer = Writer(program)
    for place in chosen:
        writer.quantize_weight(place, FORMATS[settings.weight_only], group)
    return _with_program(captured, writer.finish())


def _takes_weights_only(place: Placement, group: int | None) -> bool:
    """Whether it is a linear layer, which multiplies by rows, in groups where asked for."""
    weight = place.weight
    return (
        operator_name(place.node) == "linear"
        and weight is not None
        and (group is None or weight.meta["val"].shape[1] % group == 0)
    )
