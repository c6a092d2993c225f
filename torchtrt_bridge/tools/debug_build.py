"""The intermediate results of a compiled module: a debug build, which has them as further results.

What is built again is what the module holds, as far as it holds it: its ONNX model or cast program (on the CPU), or the
program that ``source=True`` keeps. A plan alone gives no intermediate results; then the model that the caller gives is
built, by the same route in the same precision.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..backends.base import Artifact, Place, Segment
from ..capture import CapturedModel
from ..errors import EngineMismatch, RunsOnCPU
from ..options import BuildOptions
from ..precision import Precision
from ..progress import Stages
from ..rebuilding import precision_of, recapture
from .points import counterparts, kinds, observe, with_results

if TYPE_CHECKING:
    from ..runtime.module import TRTModule

_MOST_RESULTS = 64
"""Further results of one plan; where there are more, several are built. Each keeps its layer from being fused."""


@dataclasses.dataclass(frozen=True)
class Observed:
    """``tensors``: the compiled intermediate results by node of the captured program, on the CPU. ``results``: those of
    the debug build, in the order of the signature. ``notes``: how they were had."""

    tensors: dict[str, torch.Tensor]
    results: list[torch.Tensor]
    notes: tuple[str, ...]


def run_debug_build(
    captured: CapturedModel,
    compiled: TRTModule,
    nodes: Sequence[str],
    inputs: Sequence[torch.Tensor],
    stages: Stages,
) -> Observed:
    """What ``compiled`` has for the tensors ``nodes`` of ``captured``, for flat ``inputs``.

    Raises:
        ConversionFailed, BuildFailed: the debug build fails where the module's own did not.
        EngineMismatch: the module holds plans, and there is no GPU to run them.
    """
    made = compiled.made
    if made.runtime == "tensorrt" and compiled.device.type != "cuda":
        raise EngineMismatch(
            "The module holds a TensorRT plan, which needs a GPU to be compared. Compare what the CPU computes:"
            " compile(model, inputs, precision, device='cpu')."
        )
    if made.results or made.runtime == "tensorrt":
        if made.source is None and precision_of(made).quantized:
            raise EngineMismatch(
                f"The module is a plan in {precision_of(made)}, whose scales cannot be had from it. Compile with"
                " source=True, which keeps them, and compare again."
            )
        return _rebuilt(captured, compiled, nodes, inputs, stages)
    with stages("building for debugging"):
        learned = _make(observe(captured, nodes), compiled, stages).made.segments[0]
    module, found = _marked(made, learned, nodes)
    with stages("comparing"):
        outputs = module.run_flat(inputs)
    own = len(made.signature.outputs)
    notes = [f"the intermediate results are those of the module's own {_FORMS[made.runtime]}"]
    if len(found) < len(nodes):
        notes.append(f"{len(nodes) - len(found)} of {len(nodes)} layers have no counterpart in the compiled graph")
    return Observed(dict(zip(found, outputs[own:])), outputs[:own], tuple(notes))


_FORMS = {"onnxruntime": "ONNX model, run by ONNX Runtime", "torch": "cast program, run by PyTorch"}


def _rebuilt(
    captured: CapturedModel,
    compiled: TRTModule,
    nodes: Sequence[str],
    inputs: Sequence[torch.Tensor],
    stages: Stages,
) -> Observed:
    """By building again, with the further results, what the module kept of its program, or else ``captured``."""
    base, names = captured, {name: name for name in nodes}
    if compiled.made.source is not None:
        base = recapture(compiled.made, torch.device("cpu"))
        names = counterparts(nodes, kinds(captured.program), kinds(base.program))
    tensors: dict[str, torch.Tensor] = {}
    results: list[torch.Tensor] = []
    wanted = list(names)
    own = len(captured.signature.outputs)
    builds = range(0, len(wanted), _MOST_RESULTS)
    for start in builds:
        part = wanted[start : start + _MOST_RESULTS]
        with stages("building for debugging"):
            module = _make(observe(base, [names[name] for name in part]), compiled, stages)
        with stages("comparing"):
            outputs = [tensor.cpu() for tensor in module.run_flat(inputs)]
        del module
        tensors.update(zip(part, outputs[own:]))
        results = results or outputs[:own]
    times = f"{len(builds)} debug builds" if len(builds) > 1 else "a debug build"
    notes = [f"the intermediate results are those of {times}: further results keep layers from being fused"]
    if compiled.backend == "torch2trt":
        notes.append("torch2trt traces whole models: the debug build is the ONNX route's")
    if len(names) < len(nodes):
        notes.append(f"{len(nodes) - len(names)} of {len(nodes)} layers have no counterpart in the program it kept")
    return Observed(tensors, results, tuple(notes))


def _make(captured: CapturedModel, compiled: TRTModule, stages: Stages) -> TRTModule:
    """``captured`` by the route, in the precision and for the place of ``compiled``."""
    from ..compiler import Options, make
    from ..selection import BACKENDS

    made = compiled.made
    graph_routes = [route.name for route in BACKENDS if hasattr(route, "refusals")]
    backend = made.backend if made.backend in graph_routes else "auto" if made.results else "onnx"
    parts = {segment.runtime for segment in made.segments}
    hybrid: Any = False if not made.results else "allow_torch" if parts == {"torch"} else True
    build = BuildOptions(tf32=bool(made.provenance.get("tf32")))
    precision = precision_of(made)
    if precision.quantized and made.source is None:  # a form to learn names from; what runs is the module's own
        precision = Precision(precision.other or "fp32")
    options = Options.parse(precision, backend, build, False, False, 1, False, 4, hybrid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunsOnCPU)
        return make(captured, Place(compiled.device), options, stages, made.origin)


def _marked(made: Artifact, learned: Segment, nodes: Sequence[str]) -> tuple[TRTModule, list[str]]:
    """The module that ``made`` holds, with further results, and the nodes that these are.

    ``learned`` is what the given model becomes when ``nodes`` are among its results: it shows what they are called in a
    graph of that form, and :func:`~.points.counterparts` what in the module's.
    """
    from ..runtime.module import TRTModule

    (segment,) = made.segments
    own = len(made.signature.outputs)
    if segment.runtime == "torch":
        marked, found = _marked_program(segment, learned, nodes, own)
    else:
        marked, found = _marked_onnx(segment, learned, nodes, own)
    artifact = dataclasses.replace(made, segments=(marked,))
    return TRTModule(torch.device("cpu"), _artifact=artifact), found


def _marked_program(segment: Segment, learned: Segment, nodes: Sequence[str], own: int) -> tuple[Segment, list[str]]:
    from ..runtime.program import restore, store

    assert segment.program is not None and learned.program is not None
    other = restore(learned.program)
    results: Any = other.graph.output_node().args[0][own:]  # type: ignore[index]
    named = {}
    for name, node in zip(nodes, results):
        while node.target is torch.ops.aten._to_copy.default:  # fp32 again, for the result
            node = node.args[0]
        named[name] = node.name
    program = restore(segment.program)
    pairs = counterparts(named.values(), kinds(other), kinds(program))
    found = [name for name in nodes if named[name] in pairs]
    marked = with_results(program, [pairs[named[name]] for name in found])
    outputs = (*segment.outputs, *(f"observed.{index}" for index in range(len(found))))
    return dataclasses.replace(segment, program=store(marked), outputs=outputs), found


def _marked_onnx(segment: Segment, learned: Segment, nodes: Sequence[str], own: int) -> tuple[Segment, list[str]]:
    import onnx

    assert segment.engine is not None and learned.engine is not None
    other, model = (onnx.load_from_string(s.engine.numpy().tobytes()) for s in (learned, segment))  # type: ignore[union-attr]
    maker = {value: node for node in other.graph.node for value in node.output}
    named = {}
    for name, value in zip(nodes, learned.outputs[own:]):
        while value in maker and maker[value].op_type == "Identity":
            value = maker[value].input[0]
        named[name] = value
    pairs = counterparts(named.values(), _onnx_kinds(other), _onnx_kinds(model))
    found = [name for name in nodes if named[name] in pairs]
    outputs = [pairs[named[name]] for name in found]
    added = set(outputs) - {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in sorted(added))
    engine = torch.frombuffer(bytearray(model.SerializeToString()), dtype=torch.uint8)
    return dataclasses.replace(segment, engine=engine, outputs=(*segment.outputs, *outputs)), found


def _onnx_kinds(model: Any) -> list[tuple[str, Hashable]]:
    """``(value, kind)`` of the operators of an ONNX model, whose names are ``module.path/operator``."""
    return [
        (value, (node.name.rpartition("/")[0], node.op_type, index))
        for node in model.graph.node
        for index, value in enumerate(node.output)
    ]
