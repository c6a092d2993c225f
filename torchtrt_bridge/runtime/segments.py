"""The call path of a module of several segments: one after the other, on the current stream, wired by names.

Nothing here waits for the device or copies to the host. (A PyTorch segment may: the size of what ``nonzero`` finds is
known only when it was computed.) A tensor between segments is freed after its last use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..backends.base import Artifact, Wiring
from ..dynamic import shapes_for
from ..errors import InputOutOfProfile
from .wires import consumers

Run = Callable[[Sequence[Any]], Sequence[Any]]
Check = Callable[[Sequence[Any]], "list[torch.Tensor] | None"]


class SegmentedExecution:
    """Runs an artifact's segments.

    Args:
        artifact: its segments are wired.
        runs: what runs each segment: flat inputs to flat outputs.
        check: called with the inputs of a call whose shapes, dtypes or devices differ from those of the call before; it
            raises for what does not fit, and returns the results where there is nothing to run.
        device: where all tensors are.
    """

    def __init__(self, artifact: Artifact, runs: Sequence[Run], check: Check, device: torch.device):
        self._artifact = artifact
        self._check = check
        self._device = device
        names = [f"input.{index}" for index in range(len(artifact.signature.inputs))]
        for segment in artifact.segments:
            assert segment.wiring is not None
            names += segment.wiring.outputs
        slots = {name: index for index, name in enumerate(names)}
        last = consumers(artifact)
        self._count = len(names)
        self._steps = []
        for index, (segment, run) in enumerate(zip(artifact.segments, runs, strict=True)):
            wiring = segment.wiring
            assert wiring is not None
            freed = [slots[name] for name in {*wiring.inputs, *wiring.outputs} if last[name] == index]
            step = _Step(run, [slots[n] for n in wiring.inputs], [slots[n] for n in wiring.outputs], freed, wiring)
            self._steps.append(step)
        self._results = [slots[name] for name in artifact.results]
        self._known: tuple[Any, ...] = ()

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The flat results of flat inputs."""
        empty = self._fit(tensors)
        return self._run(tensors, lambda step, inputs: step.run(inputs)) if empty is None else empty

    def kernels(self) -> tuple[torch.Tensor, ...]:
        """The runtime caches to save, one for each plan in order."""
        found = (getattr(step.run, "kernels", None) for step in self._steps)
        return tuple(kernels() for kernels in found if kernels is not None)

    def layers(self) -> tuple[str, ...]:
        """What TensorRT's inspector says of each plan, in order, as JSON."""
        found = (getattr(step.run, "layers", None) for step in self._steps)
        return tuple(text for layers in found if layers is not None for text in layers())

    @property
    def copied(self) -> set[int]:
        """Indices of the module's inputs that a segment copied, because of their strides or address."""
        count = len(self._artifact.signature.inputs)
        slots = {step.inputs[index] for step in self._steps for index in getattr(step.run, "copied", ())}
        return {slot for slot in slots if slot < count}

    @property
    def graphs(self) -> int:
        """For how many sets of shapes CUDA graphs are kept, where a plan has any."""
        return max((getattr(step.run, "graphs", 0) for step in self._steps), default=0)

    @property
    def graph_refusal(self) -> str | None:
        """Why a plan runs without the CUDA graph that it was to have."""
        refusals = (getattr(step.run, "graph_refusal", None) for step in self._steps)
        return next((refusal for refusal in refusals if refusal is not None), None)

    def measure(self, tensors: Sequence[torch.Tensor], rounds: int = 20) -> list[float]:
        """Seconds that each segment takes, the median of ``rounds`` calls: by CUDA events on a GPU, else by the clock.

        On a GPU a segment's time ends when its work does, also where the host is ahead.
        """
        on_gpu = self._device.type == "cuda"
        found: list[list[float]] = [[] for _ in self._steps]
        for _ in range(rounds + 3):
            marks = [_mark(on_gpu)]

            def timed(step: _Step, inputs: Sequence[Any], marks: list[Any] = marks) -> Sequence[Any]:
                outputs = step.run(inputs)
                marks.append(_mark(on_gpu))
                return outputs

            if self._fit(tensors) is None:
                self._run(tensors, timed, skip=False)
            if on_gpu:
                torch.cuda.synchronize(self._device)
            for times, before, after in zip(found, marks, marks[1:]):
                times.append(before.elapsed_time(after) / 1e3 if on_gpu else after - before)
        return [sorted(times[3:])[len(times[3:]) // 2] if times[3:] else 0.0 for times in found]

    def _fit(self, tensors: Sequence[Any]) -> list[torch.Tensor] | None:
        try:
            kinds = tuple((t.shape, t.dtype, t.device) for t in tensors)
        except AttributeError:  # no tensor at all, which the check says better
            kinds = ()
        if kinds and kinds == self._known:
            return None
        empty = self._check(tensors)
        if empty is None:
            self._known = kinds
        return empty

    def _run(
        self, tensors: Sequence[Any], run: Callable[[_Step, Sequence[Any]], Sequence[Any]], skip: bool = True
    ) -> list[torch.Tensor]:
        values: list[Any] = [*tensors, *[None] * (self._count - len(tensors))]
        with torch.no_grad():
            for step in self._steps:
                inputs = [values[slot] for slot in step.inputs]
                if step.may_be_empty and any(t.numel() == 0 for t in inputs):
                    outputs: Sequence[Any] = self._empty(step.wiring, inputs, tensors)
                    if not skip:
                        run(_Step(lambda _: (), [], [], [], step.wiring), inputs)
                else:
                    outputs = run(step, inputs)
                for slot, value in zip(step.outputs, outputs, strict=True):
                    values[slot] = value
                for slot in step.freed:
                    values[slot] = None
                del inputs, outputs
        return [values[slot] for slot in self._results]

    def _empty(
        self, wiring: Wiring, inputs: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The results of a segment of which a size is 0."""
        assert wiring.sizes is not None
        before, after = wiring.sizes
        sizes = self._artifact.signature.sizes([t.shape for t in tensors])
        for spec, tensor in zip(before, inputs):
            sizes.update({str(name): size for name, size in zip(spec.shape, tensor.shape) if str(name).isidentifier()})
        shapes = zip(after, shapes_for(after, sizes))
        results = [torch.empty(shape, dtype=spec.torch_dtype, device=self._device) for spec, shape in shapes]
        if any(result.numel() for result in results):
            raise InputOutOfProfile("A tensor inside the model is empty where a result would not be.")
        return results


class _Step:
    def __init__(self, run: Run, inputs: list[int], outputs: list[int], freed: list[int], wiring: Wiring):
        self.run, self.inputs, self.outputs, self.freed, self.wiring = run, inputs, outputs, freed, wiring
        self.may_be_empty = wiring.sizes is not None


def _mark(on_gpu: bool) -> Any:
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
