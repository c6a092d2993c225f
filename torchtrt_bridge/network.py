"""ttb.from_network(): a network written by hand with TensorRT's layers, as a TRTModule."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .backends.base import Artifact, Place, Segment
from .capture import CapturedModel
from .errors import InvalidInput, InvalidOption
from .network_inputs import Given
from .network_writer import Writer
from .signature import Signature
from .structure import Node, describe
from .tracebacks import leaves_no_memory

if TYPE_CHECKING:
    from .options import BuildOptions
    from .runtime.module import TRTModule
    from .verify import Tolerance


@leaves_no_memory
def from_network(
    build: Callable[..., Any],
    inputs: Any,
    *,
    reference: Callable[..., Any] | None = None,
    dynamic_shapes: Any = None,
    dynamic_batch: tuple[int, int, int] | None = None,
    device: torch.device | str | None = None,
    target: str | None = None,
    options: BuildOptions | None = None,
    tolerance: Tolerance | None = None,
    max_contexts: int = 8,
    cuda_graph: bool | str = "auto",
    max_graphs: int = 4,
) -> TRTModule:
    """A module that runs the network that ``build`` writes with TensorRT's own layers.

    Args:
        build: called as ``build(ctx, *tensors)``, or ``build(ctx, **tensors)`` for a dict, with a
            :class:`~torchtrt_bridge.trt.conversion.ConversionContext` and the inputs as TensorRT's tensors. It adds
            layers to ``ctx.network`` and returns a tensor, or tensors in tuples, lists or dicts, which the module
            returns in the same structure. A layer with one result stands for that.
        inputs: a tensor, a tuple of tensors or a dict of tensors by name: examples of what the module will be called
            with. The network is strongly typed, so their dtypes, and ``ctx.cast``, decide what it computes in.
        reference: the same in PyTorch, called as the module is. Its results are compared with the engine's at the
            example's sizes and at the ends of every dynamic range. None compares nothing, and the report says so.
        dynamic_shapes, dynamic_batch: as for :func:`torchtrt_bridge.compile`.
        device: the GPU to run on; None means the current one. Where there is none, and no target, the engine is built
            for every GPU elsewhere.
        target: build for this GPU elsewhere (see :func:`torchtrt_bridge.build`).
        options: settings of TensorRT's builder.
        tolerance: how far the results may be from the reference's; None is the default of the narrowest dtype.
        max_contexts, cuda_graph, max_graphs: see :class:`TRTModule`.

    Raises:
        ConverterFailed: ``build`` raised, returned something that is no tensor, or TensorRT refused one of its layers.
        BuildFailed, VerificationFailed, InvalidInput, InvalidOption, BackendUnavailable, DeviceMismatch: see
            :mod:`torchtrt_bridge.errors`.
    """
    from .asked import Options, ordinary_tensors
    from .finishing import Finish
    from .origin import Origin
    from .progress import Stages

    if options is not None and options.torch_tensorrt:
        raise InvalidOption("options: torch_tensorrt's settings are for its own route. Leave them out.")
    place = _place(device, target)
    verify: Any = False if reference is None or place.target else tolerance or True
    given = Given.parse(build, inputs, dynamic_shapes, dynamic_batch)
    parsed = Options.parse("fp32", "auto", options, verify, False, max_contexts, cuda_graph, max_graphs)
    with Stages() as stages, ordinary_tensors():
        with stages("building") as progress:
            artifact = _build(build, given, parsed, place, progress)
        parsed = dataclasses.replace(parsed, precision=type(parsed.precision)(artifact.precision))
        captured = _captured(reference, given, artifact.signature)
        module = Finish(captured, place, parsed, stages, Origin())(artifact)
    if reference is None:
        report = module.report
        notes = [note for note in report.notes if not note.startswith("verify=False")]
        notes.append("written by hand, and not compared with anything: no reference was given")
        module.set_report(dataclasses.replace(report, notes=tuple(notes)))
    return module


def _place(device: Any, target: str | None) -> Place:
    from .asked import parse_device

    wanted = parse_device(device)
    if wanted is not None and target is not None:
        raise InvalidOption(f"device={str(wanted)!r} and target={target!r}: give one of them.")
    if wanted is not None and wanted.type == "cpu":
        raise InvalidOption("device='cpu': a network of TensorRT's layers runs on a GPU; leave device out.")
    if wanted is None and target is None and not torch.cuda.is_available():
        target = "portable"
    return Place(wanted or torch.device("cuda" if target is None else "cpu"), target)


def _build(build: Callable[..., Any], given: Given, options: Any, place: Place, progress: Any) -> Artifact:
    from .backends.interface import (
        builder_settings,
        input_names,
        output_names,
        plan_provenance,
        profile,
        unknown_dtypes,
    )
    from .trt.build import build as build_plan
    from .trt.request import Request

    interface = given.interface()
    if unknown := unknown_dtypes(interface):
        raise InvalidInput("; ".join(unknown))
    writer = Writer(build, given, interface)
    with torch.cuda.device(place.device) if place.device.type == "cuda" else contextlib.nullcontext():
        plan = build_plan(
            Request(
                fill=writer,
                profile=profile(interface),
                target=None if place.target in (None, "portable") else place.target,
                **builder_settings(options.build),
            ),
            progress=progress,
        )
    made = plan_provenance(plan.flavor, plan.version, plan.target, plan.num_layers, options.build, place)
    wires = tuple(input_names(writer.signature)), tuple(output_names(writer.signature))
    return Artifact(
        segments=(Segment("tensorrt", *wires, engine=torch.frombuffer(plan.data, dtype=torch.uint8)),),
        signature=writer.signature,
        backend="network",
        precision=writer.precision,
        provenance={"torch": torch.__version__, **made},
    )


def _captured(reference: Callable[..., Any] | None, given: Given, signature: Signature) -> CapturedModel:
    """What the verification looks at: the inputs and the reference."""

    def eager(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        assert reference is not None
        found: list[torch.Tensor] = []

        def leaf(_: str, item: Any) -> Node | None:
            if not isinstance(item, torch.Tensor):
                return None
            found.append(item)
            return {"output": len(found) - 1}

        value = given.call(reference, tensors=[tensor.clone() for tensor in tensors])
        if describe(value, leaf) != signature.result:
            names = [spec.name for spec in signature.outputs]
            raise InvalidInput(
                f"reference returns {len(found)} tensors, and not in the structure of the network's result"
                f" ({', '.join(names)}): return them in the same tuples, lists and dicts."
            )
        return found

    examples = tuple(given.tensors.values())
    device = examples[0].device
    program: Any = None  # there is none: nothing is converted from here on
    return CapturedModel(program, signature, examples, (), None, eager, device)
