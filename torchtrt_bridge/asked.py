"""What compile(), build() and rebuild() were asked for, checked before any work is done."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .backends.base import Artifact, Place
from .backends.torch_tensorrt_settings import check_route
from .errors import DeviceMismatch, InvalidOption
from .options import BuildOptions
from .precision import Precision
from .runtime.module import TRTModule
from .selection import candidates
from .verify import TF32, Tolerance


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


@contextlib.contextmanager
def ordinary_tensors() -> Iterator[None]:
    """No autocast, nor anything else of the caller's that would go into the engine. What is made here outlives the
    caller's torch.inference_mode(), so its tensors must not be made inside it."""
    without_autocast = (torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda"))
    with torch.inference_mode(False), torch.no_grad(), contextlib.ExitStack() as stack:
        for context in without_autocast:
            stack.enter_context(context)
        yield
