"""What goes into a build and what comes out, as plain data that also crosses to a child process."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .flavor import Flavor
from .work import Work

#: Called with the phase that TensorRT is in, for a person to read, and the part of the build that is done (0 to 1).
Progress = Callable[[str, float], object]

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Initializer:
    """One weight of the ONNX model that lies in memory: its name there, and where its bytes are.

    ``owner`` is whatever keeps that memory; it is held while TensorRT may read it.
    """

    name: str
    address: int
    nbytes: int
    owner: Any = dataclasses.field(default=None, repr=False)


class Edit(Protocol):
    """Adds layers to a parsed network, by functions of the user's."""

    def __call__(self, flavor: Flavor, network: Any, initializers: Mapping[str, Initializer]) -> Any:
        """What it returns lives until the plan is there. ``initializers`` are the request's, by name."""
        ...

    def stays(self) -> str | None:
        """Why it cannot be handed to a child process; None if it can."""
        ...

    def to_plain(self) -> dict[str, Any]:
        """JSON-able data for a child: with ``"module"``, whose function ``from_plain`` makes this again."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One engine to build.

    Args:
        model: an ONNX model: the path of a file, with external data beside it, or its bytes.
        profile: the range of each input that has a dynamic size: ``{name: (min shape, opt shape, max shape)}``.
        initializers: the weights that bytes leave out. In the model, each has its name, dtype and dims, and either no
            data or a reference to external data (which is not read).
        target: the GPU to build for (``"sm89"``). None is the GPU that is here; where there is none, or where kernels
            are compiled when the engine runs, every GPU from Ampere on.
        decomposable_attention: let an attention for which TensorRT has no kernel become matrix products and a softmax,
            instead of failing the build.
        fill: instead of ``model``, in this process only: given TensorRT's module and an empty network, it adds the
            layers. What it returns lives until the plan is there.
        edit: changes the network that the parser made (see :class:`Edit`).
        workspace, optimization_level, timing_cache, tf32, version_compatible, hardware_compatible: as in
            :class:`torchtrt_bridge.options.BuildOptions`.
    """

    model: str | os.PathLike[str] | bytes | bytearray | memoryview = dataclasses.field(default=b"", repr=False)
    profile: Mapping[str, tuple[Shape, Shape, Shape]] = dataclasses.field(default_factory=dict)
    initializers: tuple[Initializer, ...] = dataclasses.field(default=(), repr=False)
    target: str | None = None
    decomposable_attention: bool = True
    fill: Callable[[Any, Any], Any] | None = dataclasses.field(default=None, repr=False)
    edit: Edit | None = dataclasses.field(default=None, repr=False)
    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: str | os.PathLike[str] | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A serialized engine and how it came about.

    ``data`` is a writable buffer of bytes, TensorRT's own memory where the build ran in this process:
    ``torch.frombuffer(plan.data, dtype=torch.uint8)`` shares it. ``layers`` counts the layers of the network that
    TensorRT was given, by type; ``work`` is their matrix and convolution work; ``warnings`` are TensorRT's, each once.
    """

    data: memoryview = dataclasses.field(repr=False)
    flavor: str
    version: str
    target: str | None
    layers: Mapping[str, int]
    parse_seconds: float
    build_seconds: float
    warnings: tuple[str, ...] = ()
    work: tuple[Work, ...] = ()

    @property
    def num_layers(self) -> int:
        return sum(self.layers.values())


@dataclasses.dataclass(frozen=True)
class Problem:
    """What TensorRT's ONNX parser says about one node: its name and operator (empty if it means the whole model)."""

    node: str
    operator: str
    code: str
    description: str

    def __str__(self) -> str:
        place = f"{self.node or '(unnamed)'} [{self.operator}]: " if self.operator or self.node else ""
        return f"{place}{self.description} ({self.code})"


class Failure(Exception):
    """A build that ended with an answer, and the answer was no.

    ``summary`` is one line, ``problems`` are the parser's, ``messages`` TensorRT's last error messages.
    """

    def __init__(self, summary: str, problems: tuple[Problem, ...] = (), messages: tuple[str, ...] = ()) -> None:
        self.summary, self.problems, self.messages = summary, problems, messages
        super().__init__("\n  ".join([summary, *map(str, problems), *messages]))

    def to_dict(self) -> dict[str, Any]:
        problems = [dataclasses.asdict(problem) for problem in self.problems]
        kind = type(self).__name__
        return {"kind": kind, "summary": self.summary, "problems": problems, "messages": list(self.messages)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Failure:
        kinds = (Failure, Refused, NoGpu, NoKernel, HandwrittenFailed)
        kind = next(kind for kind in kinds if kind.__name__ == data["kind"])
        return kind(data["summary"], tuple(Problem(**p) for p in data["problems"]), tuple(data["messages"]))


class Refused(Failure):
    """An option cannot be honoured by this flavour of TensorRT."""


class NoGpu(Failure):
    """This TensorRT builds only where there is a GPU."""


class HandwrittenFailed(Failure):
    """A function that adds layers by hand raised, or made what it must not."""


class NoKernel(Failure):
    """This TensorRT has no kernel of the precision that some layers are to have."""


class Crashed(Failure):
    """The build process ended without an answer."""


class Cancelled(Exception):
    """The build was given up because the caller asked for it."""
