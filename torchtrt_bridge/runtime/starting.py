"""From an artifact to what runs it: an engine's contexts on a GPU, ONNX Runtime or PyTorch, several of them where the
model was cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import DeviceMismatch, EngineMismatch
from . import graphing
from .checking import InputCheck

if TYPE_CHECKING:
    from ..backends.base import Artifact, Segment

Execution = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class Start:
    """``artifact`` on ``device``. The others are a :class:`~torchtrt_bridge.TRTModule`'s own settings."""

    artifact: Artifact
    device: torch.device
    check: InputCheck
    max_contexts: int
    cuda_graph: bool | str
    max_graphs: int

    def execution(self, caches: Sequence[torch.Tensor]) -> Execution:
        """What runs it; ``caches`` are the kernels that were compiled for each of its plans before.

        Raises:
            DeviceMismatch, EngineMismatch: it holds a plan that cannot run on that device or in this process.
        """
        if self.artifact.results:
            from .segments import SegmentedExecution

            left = iter(caches)
            runs = []
            for segment in self.artifact.segments:
                kernels = next(left, None) if segment.runtime == "tensorrt" else None
                runs.append(self._run(segment, kernels, lambda _: None))
            return SegmentedExecution(self.artifact, runs, self.check, self.device)
        segment = self.artifact.segments[0]
        if segment.runtime == "tensorrt":
            return self._run(segment, next(iter(caches), None), self.check)
        from .cpu import CheckedExecution

        return CheckedExecution(self.check, self._run(segment, None, self.check))

    def _run(self, segment: Segment, kernels: torch.Tensor | None, check: Any) -> Execution:
        """What runs one segment; a plan's calls ``check`` itself, when shapes change."""
        if segment.runtime == "torch":
            from .program import restore, run_callable

            assert segment.program is not None
            return run_callable(restore(segment.program)).to(self.device)
        assert segment.engine is not None
        if segment.runtime == "onnxruntime":
            from .cpu import OnnxExecution

            return OnnxExecution(segment.engine, segment.inputs, segment.outputs)
        return self._engine(segment, kernels, check)

    def _engine(self, segment: Segment, kernels: torch.Tensor | None, check: Any) -> Execution:
        made = self.artifact.provenance
        if self.device.type != "cuda" and torch.cuda.is_available():
            raise DeviceMismatch(
                "The module was moved to the CPU, where a TensorRT plan waits and does not run. Move it back with"
                " .cuda() before calling it."
            )
        if self.device.type != "cuda":
            raise EngineMismatch(
                f"The engine is a {made.get('flavour')} plan built for {made.get('target')}; it needs an NVIDIA GPU,"
                " and torch finds none here. Load the file on that GPU, or compile the model for the CPU."
            )
        from ..trt.engine import Engine
        from ..trt.execution import Execution as EngineExecution
        from ..trt.targets import installed
        from . import fit

        fit.check(made, installed(), self.device)
        assert segment.engine is not None
        engine = Engine(
            segment.engine,
            self.device,
            tf32=bool(made.get("tf32")),
            specialization=made.get("kernel_specialization"),
        )
        if engine.computes_tf32 and not made.get("tf32") and self.artifact.precision == "fp32":
            raise EngineMismatch(
                "The engine computes in true fp32, and this process in TF32: TensorRT for RTX decides that once, when"
                " the first engine is made (by tf32=True) or by NVIDIA_TF32_OVERRIDE. Use a process of its own."
            )
        return EngineExecution(
            engine,
            segment.inputs,
            segment.outputs,
            check,
            torch.empty(0, dtype=torch.uint8, device="cpu") if kernels is None else kernels,
            self.max_contexts,
            graphs=graphing.graphs(self.cuda_graph, self.max_graphs, self.artifact),
            must_graph=self.cuda_graph is True,
        )
