"""What every route into TensorRT has in common: what it is given, what it answers, and what it makes.

A backend knows nothing of the others, of ``nn.Module`` wrapping or of saving. It is asked ``supports(captured)``,
without side effects, before ``convert(...)``; both get the same :class:`~torchtrt_bridge.capture.CapturedModel`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..origin import Origin
from ..signature import Signature, TensorSpec

if TYPE_CHECKING:
    from ..capture import CapturedModel
    from ..options import BuildOptions
    from ..precision import Precision


@dataclasses.dataclass(frozen=True)
class StoredProgram:
    """An exported program without pickles: its graph as serde's JSON, its tensors beside it."""

    graph: bytes
    state: Mapping[str, torch.Tensor]
    constants: Mapping[str, torch.Tensor]

    def owned(self) -> StoredProgram:
        """The same with tensors of its own on the CPU: a user may train the model further."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.state.items()}
        constants = {name: tensor.detach().cpu().clone() for name, tensor in self.constants.items()}
        return dataclasses.replace(self, state=state, constants=constants)


@dataclasses.dataclass(frozen=True)
class Wiring:
    """How one of several segments stands among the others: the wires that it reads and writes, by name, in the order of
    the segment's own inputs and outputs. ``input.0``, ``input.1``, ... are the model's flat inputs.

    ``sizes`` is there where a size in the segment depends on the data and may be 0, which TensorRT has not: the
    inputs and outputs as specs, from which an empty result is made without running anything.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """One piece of a compiled model and the runtime that runs it.

    ``runtime`` is ``"tensorrt"`` (``engine`` is a plan), ``"onnxruntime"`` (``engine`` is an ONNX model), or
    ``"torch"`` (``program`` holds what PyTorch runs). ``engine`` is a one-dimensional uint8 tensor on the CPU.
    ``inputs`` and ``outputs`` are the engine's own tensor names. ``wiring`` is there where there are several segments.
    """

    runtime: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    engine: torch.Tensor | None = None
    program: StoredProgram | None = None
    wiring: Wiring | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Artifact:
    """What a backend makes and a :class:`~torchtrt_bridge.TRTModule` runs and saves.

    ``provenance`` is plain data: versions of torch, of TensorRT and of the backend, the flavour, the GPU's compute
    capability or the build's target. ``report`` is plain data too (see :mod:`torchtrt_bridge.report`). ``results``
    names the wires of the flat outputs where the segments are wired. ``precision`` is the name of the default one, and
    ``asked`` the whole :class:`~torchtrt_bridge.Precision` as plain data, where it says more.
    """

    segments: tuple[Segment, ...]
    signature: Signature
    backend: str
    precision: str
    constants: tuple[torch.Tensor, ...] = ()
    source: StoredProgram | None = None
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: Origin = Origin()
    results: tuple[str, ...] = ()
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def runtime(self) -> str:
        """The runtime that decides where the module can be: TensorRT's, if any segment has it."""
        runtimes = {segment.runtime for segment in self.segments}
        return next(name for name in ("tensorrt", "onnxruntime", "torch") if name in runtimes)


@dataclasses.dataclass(frozen=True)
class Support:
    """A route's answer to "can you?": ``reasons`` says why not, one line each, naming layers where it can. ``missing``:
    because a package that it needs is missing or broken."""

    backend: str
    possible: bool
    reasons: tuple[str, ...] = ()
    missing: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the result is to run: on ``device``, or, if ``target`` is given (``"sm89"``, ``"portable"``), on another
    machine's GPU."""

    device: torch.device
    target: str | None = None

    @property
    def needs_plan(self) -> bool:
        return self.target is not None or self.device.type == "cuda"

    def __str__(self) -> str:
        return f"a GPU elsewhere, {self.target}" if self.target else str(self.device)


@dataclasses.dataclass(frozen=True)
class Served:
    """What a route makes of a converter's call: ``form`` names the form that it serves as one operator (``"tensorrt"``,
    ``"onnx"``); None where it takes the ATen form, or the call as it is. ``reason``: why not the other forms."""

    form: str | None
    reason: str = ""


class Backend(Protocol):
    """One route into TensorRT."""

    name: str

    def supports(self, captured: CapturedModel, place: Place) -> Support:
        """Whether the route can try, without side effects."""
        ...

    def convert(
        self,
        captured: CapturedModel,
        precision: Precision,
        build: BuildOptions,
        place: Place,
        progress: Callable[[str, float], None],
    ) -> Artifact:
        """Make the artifact; ``progress(phase, fraction)`` is told how far it is.

        Raises:
            ConversionFailed, BuildFailed, InvalidOption, BackendUnavailable: see :mod:`torchtrt_bridge.errors`.
        """
        ...
