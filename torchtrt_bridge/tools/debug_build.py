"""The intermediate results of a compiled module: a debug build, which has them as further results.

What is built again is what the module holds, as far as it holds it: its ONNX model or cast program (on the CPU), or the
program that ``source=True`` keeps. A plan alone gives no intermediate results; then the model that the caller gives is
built, by the same route in the same precision.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..backends.base import Artifact, Place
from ..capture import CapturedModel
from ..errors import EngineMismatch, RunsOnCPU
from ..lowering import lower
from ..options import BuildOptions
from ..precision import Precision, cast_program
from ..progress import Stages
from ..rebuilding import precision_of, recapture
from ..registry import Snapshot
from .marking import marked
from .points import counterparts, kinds, observe, retype_results

if TYPE_CHECKING:
    from ..runtime.module import TRTModule

_Observe = Callable[[Sequence[str]], tuple[CapturedModel, list[str]]]
_MOST_RESULTS = 64
"""Further results of one plan; where there are more, several are built. Each keeps its layer from being fused."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model as eager computes it, ``eager``, and as a compilation takes it, ``taken``: the same, unless some of the
    converters, ``registered``, keep calls of Python functions and modules whole."""

    eager: CapturedModel
    taken: CapturedModel
    registered: Snapshot

    def observed(self, nodes: Sequence[str]) -> tuple[CapturedModel, list[str]]:
        """What a compilation takes, lowered, with the tensors of ``nodes`` of ``eager`` as further results, and those
        of ``nodes`` that it has."""
        names = {name: name for name in nodes}
        if self.taken is not self.eager:
            names = counterparts(nodes, kinds(self.eager.program), kinds(self.taken.program))
        return lower(observe(self.taken, names.values()), self.registered), list(names)


@dataclasses.dataclass(frozen=True)
class Observed:
    """``tensors``: the compiled intermediate results by node of the captured program, on the CPU. ``results``: those of
    the debug build, in the order of the signature. ``notes``: how they were had."""

    tensors: dict[str, torch.Tensor]
    results: list[torch.Tensor]
    notes: tuple[str, ...]


def run_debug_build(
    subject: Subject,
    compiled: TRTModule,
    nodes: Sequence[str],
    inputs: Sequence[torch.Tensor],
    stages: Stages,
) -> Observed:
    """What ``compiled`` has for the tensors ``nodes`` of ``subject.eager``, for flat ``inputs``.

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
        return _rebuilt(subject, compiled, nodes, inputs, stages)
    with stages("building for debugging"):
        captured, had = subject.observed(nodes)
        learned = _make(captured, compiled, stages).made.segments[0]
    module, found = marked(made, learned, had)
    with stages("comparing"):
        outputs = module.run_flat(inputs)
    own = len(made.signature.outputs)
    note = f"the intermediate results are those of the module's own {_FORMS[made.runtime]}"
    notes = (note, *_missing(len(nodes) - len(found), len(nodes)))
    return Observed(dict(zip(found, outputs[own:])), outputs[:own], notes)


_FORMS = {"onnxruntime": "ONNX model, run by ONNX Runtime", "torch": "cast program, run by PyTorch"}


def _rebuilt(
    subject: Subject,
    compiled: TRTModule,
    nodes: Sequence[str],
    inputs: Sequence[torch.Tensor],
    stages: Stages,
) -> Observed:
    """By building again, with the further results, what the module kept of its program, or else ``subject``."""
    observed = subject.observed if compiled.made.source is None else _kept(subject, compiled.made, nodes)
    tensors: dict[str, torch.Tensor] = {}
    results: list[torch.Tensor] = []
    own = len(compiled.signature.outputs)
    builds = range(0, len(nodes), _MOST_RESULTS)
    for start in builds:
        with stages("building for debugging"):
            captured, had = observed(nodes[start : start + _MOST_RESULTS])
            module = _make(_as_computed(captured, own, precision_of(compiled.made)), compiled, stages)
        with stages("comparing"):
            outputs = [tensor.cpu() for tensor in module.run_flat(inputs)]
        del module
        tensors.update(zip(had, outputs[own:]))
        results = results or outputs[:own]
    times = f"{len(builds)} debug builds" if len(builds) > 1 else "a debug build"
    notes = [f"the intermediate results are those of {times}: further results keep layers from being fused"]
    if compiled.backend == "torch2trt":
        notes.append("torch2trt traces whole models: the debug build is the ONNX route's")
    return Observed(tensors, results, (*notes, *_missing(len(nodes) - len(tensors), len(nodes))))


def _kept(subject: Subject, made: Artifact, nodes: Sequence[str]) -> _Observe:
    """:meth:`Subject.observed`, of the program that ``made`` keeps."""
    kept = recapture(made, torch.device("cpu"))
    names = counterparts(nodes, kinds(subject.eager.program), kinds(kept.program))

    def observed(part: Sequence[str]) -> tuple[CapturedModel, list[str]]:
        had = [name for name in part if name in names]
        return observe(kept, [names[name] for name in had]), had

    return observed


def _missing(count: int, total: int) -> list[str]:
    return [f"{count} of {total} layers have no counterpart in what was compiled"] if count else []


def _as_computed(captured: CapturedModel, own: int, precision: Precision) -> CapturedModel:
    """``captured`` with the results after its ``own`` in the dtypes that they are computed in. A cast to float32 at the
    end might be fused with the layer before it, and what overflows in float16 would be finite."""
    results: Any = cast_program(captured.program, precision).program.graph.output_node().args[0]
    dtypes = [node.meta["val"].dtype for node in results]
    for index, node in enumerate(results[own:], own):
        while node.target is torch.ops.aten._to_copy.default:
            node = node.args[0]
        if node.op == "call_function":
            dtypes[index] = node.meta["val"].dtype
    return retype_results(captured, dtypes)


def _make(captured: CapturedModel, compiled: TRTModule, stages: Stages) -> TRTModule:
    """``captured`` by the route, in the precision and for the place of ``compiled``."""
    from ..asked import Options
    from ..compiler import make
    from ..selection import BACKENDS

    made = compiled.made
    graph_routes = [route.name for route in BACKENDS if hasattr(route, "refusals")]
    backend = made.backend if made.backend in graph_routes else "auto" if made.results else "onnx"
    parts = {segment.runtime for segment in made.segments}
    hybrid: Any = False if not made.results else "allow_torch" if parts == {"torch"} else "auto"
    build = BuildOptions(tf32=bool(made.provenance.get("tf32")), minimum_share=0.0)  # nothing to refuse
    precision = precision_of(made)
    if precision.quantized and made.source is None:  # a form to learn names from; what runs is the module's own
        precision = Precision(precision.other or "fp32")
    options = Options.parse(precision, backend, build, False, False, 1, False, 4, hybrid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunsOnCPU)
        return make(captured, Place(compiled.device), options, stages, made.origin)
