"""Which route makes the module: by name, the first in order that converts and verifies, or the one measured fastest.

What became of each route is a row of the report: a route that fails is an exception only where all do.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .backends.base import Artifact, Backend, Place
from .backends.onnx import OnnxBackend
from .backends.torch2trt import Torch2TrtBackend
from .backends.torch_tensorrt import TorchTensorRTBackend
from .edges import Edges, elsewhere
from .errors import (
    BackendUnavailable,
    BridgeError,
    BuildFailed,
    ConversionFailed,
    InvalidOption,
    NothingInTensorRT,
    PrecisionNotApplied,
    VerificationFailed,
    nearest,
)
from .hybrid import Hybrid
from .progress import Stages

if TYPE_CHECKING:
    from .capture import CapturedModel
    from .options import BuildOptions
    from .precision import Precision
    from .runtime.module import TRTModule

_log = logging.getLogger("torchtrt_bridge")

BACKENDS: tuple[Backend, ...] = (OnnxBackend(), TorchTensorRTBackend(), Torch2TrtBackend())
"""In the order in which ``backend="auto"`` tries them: that of the table in ``docs/choosing.md``, fastest first."""

CHOICES = ("auto", "fastest")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What became of one route.

    Args:
        route: its name.
        outcome: ``"chosen"``; ``"slower"`` or ``"not tried"``, where another was chosen; ``"impossible"``, by its own
            word; ``"failed"``, in conversion, build or load; ``"wrong"``, in verification.
        reason: one or more lines, empty where it was chosen.
        seconds: wall time of the attempt.
        milliseconds: median time of a call, where it was measured.
        cuda_graph: whether calls went through a CUDA graph then.
    """

    route: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    milliseconds: float | None = None
    cuda_graph: bool | None = None


class Attempts:
    """The rows so far, and the errors that some of them stand for."""

    def __init__(self) -> None:
        self.rows: list[Attempt] = []
        self.errors: list[BridgeError] = []
        self.faulty = False  # whether a route failed otherwise than by its word: in TensorRT, as it loaded or ran
        self._missing: list[bool] = []

    def make(
        self,
        route: Backend,
        captured: CapturedModel,
        precision: Precision,
        options: BuildOptions,
        place: Place,
        stages: Stages,
        finish: Callable[[Artifact], TRTModule],
    ) -> TRTModule | None:
        """The module of ``route``, verified by ``finish``; None where there is none, with a row that says why."""
        began = time.perf_counter()
        captured = captured.for_route(route.name)
        edges = Edges.of(captured, place) if hasattr(route, "refusals") else None
        given = captured if edges is None else edges.inner
        support = route.supports(given, place)
        reasons = (*support.reasons, *elsewhere(given)) if route in BACKENDS else support.reasons
        if reasons or not support.possible:
            self.rows.append(Attempt(route.name, "impossible", "; ".join(reasons)))
            self._missing.append(support.missing)
            return None
        try:
            if route in BACKENDS:
                refuse_foreign(route, options)
            with stages("converting") as progress:
                artifact = route.convert(given, precision, options, place, progress)
            return finish(artifact if edges is None else edges.around(artifact))
        except BridgeError as error:
            failure = error
        except Exception as error:  # a fault of one route, in whatever library it drives, must not cost the others
            _log.warning("the route %r failed in a way that it should not", route.name, exc_info=True)
            failure = ConversionFailed(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            self.faulty = True
        outcome = "wrong" if isinstance(failure, VerificationFailed) else "failed"
        self.rows.append(Attempt(route.name, outcome, f"{failure}", time.perf_counter() - began))
        self.errors.append(failure)
        return None

    def may_be_cut(self) -> bool:
        """Whether a cut can help: some route did not take an operator, and none was found to compute wrong numbers, of
        which no operator is known to be the cause."""
        failed = any(isinstance(error, (ConversionFailed, BuildFailed)) for error in self.errors)
        unfit = not self.errors and not all(self._missing)
        return (failed or unfit) and not self.wrong

    @property
    def wrong(self) -> bool:
        """Whether some route's module computed wrong numbers."""
        return any(row.outcome == "wrong" for row in self.rows)

    def error(self) -> BridgeError:
        """The one exception for all: that of the only route that could try, or one with every reason."""
        if len(self.errors) == 1:
            return self.errors[0]
        if self.errors:
            kind = _common([type(error) for error in self.errors])
        else:
            kind = BackendUnavailable if all(self._missing) else ConversionFailed
        if self.errors and isinstance(self.errors[-1], NothingInTensorRT):
            kind = NothingInTensorRT
        unmet = [error for error in self.errors if isinstance(error, PrecisionNotApplied)]
        if unmet:
            kind = PrecisionNotApplied
        if len(self.rows) == 1:
            return kind(f"The route {self.rows[0].route!r} cannot compile the model: {self.rows[0].reason}")
        reasons = "\n".join(f"  {row.route}: {_indented(row.reason)}" for row in self.rows)
        error = kind(f"No route could compile the model:\n{reasons}")
        if isinstance(error, VerificationFailed):
            tried = [row.route for row in self.rows if row.outcome == "wrong"]
            error.rows = tuple(
                {**row, "result": f"{route}: {row['result']}"}
                for route, each in zip(tried, self.errors)
                for row in getattr(each, "rows", ())
            )
        if isinstance(error, PrecisionNotApplied):
            error.rows = unmet[0].rows
        error.__cause__ = self.errors[-1] if self.errors else None
        return error


def convert_and_check(
    captured: CapturedModel,
    precision: Precision,
    options: BuildOptions,
    place: Place,
    backend: str,
    stages: Stages,
    finish: Callable[[Artifact], TRTModule],
    hybrid: bool | str = "auto",
) -> TRTModule:
    """The module of the first route that converts and whose module ``finish`` makes and verifies.

    Raises:
        InvalidOption: no route has that name.
        BridgeError: the own error of the only route that could try; where several failed, one of the kind that they
            have in common, with every reason.
    """
    attempts = Attempts()
    routes = candidates(backend)
    for index, route in enumerate(routes if hybrid is not True else ()):
        began = time.perf_counter()
        module = attempts.make(route, captured, precision, options, place, stages, finish)
        if module is None:
            continue
        attempts.rows.append(Attempt(route.name, "chosen", seconds=time.perf_counter() - began))
        attempts.rows += [
            Attempt(other.name, "not tried", f"{route.name} comes before it") for other in routes[index + 1 :]
        ]
        set_rows(module, attempts.rows)
        return module
    return in_parts(attempts, captured, precision, options, place, backend, stages, finish, hybrid)


def in_parts(
    attempts: Attempts,
    captured: CapturedModel,
    precision: Precision,
    options: BuildOptions,
    place: Place,
    backend: str,
    stages: Stages,
    finish: Callable[[Artifact], TRTModule],
    hybrid: bool | str,
) -> TRTModule:
    """The module of the model cut into parts, after no route took it whole.

    Raises:
        NothingInTensorRT: no part is left for TensorRT.
        BridgeError: see :meth:`Attempts.error`.
    """
    parts = _for_parts(candidates(backend), options)
    suspicious = attempts.faulty or (hybrid == "allow_torch" and attempts.wrong)
    if hybrid is True or (hybrid and parts and (attempts.may_be_cut() or suspicious)):
        began = time.perf_counter()
        route = Hybrid(parts, hybrid == "allow_torch", suspicious)
        module = attempts.make(route, captured, precision, options, place, stages, finish)
        if module is not None:
            attempts.rows.append(Attempt(route.name, "chosen", seconds=time.perf_counter() - began))
            set_rows(module, attempts.rows)
            return module
    raise attempts.error()


def candidates(backend: str) -> tuple[Backend, ...]:
    """The routes that ``backend`` names, in the order in which they are tried.

    Raises:
        InvalidOption: none has that name.
    """
    if backend in CHOICES:
        return BACKENDS
    names = [*CHOICES, *(route.name for route in BACKENDS)]
    if backend not in names:
        raise InvalidOption(
            f"backend={backend!r}: there is {', '.join(map(repr, names[:-1]))} and {names[-1]!r}."
            f"{nearest(str(backend), names)}"
        )
    return tuple(route for route in BACKENDS if route.name == backend)


def refuse_foreign(route: Backend, options: BuildOptions) -> None:
    """A setting that is named after a route is for that route alone.

    Raises:
        InvalidOption: ``options`` has one for another route.
    """
    for other in BACKENDS:
        if other.name != route.name and getattr(options, other.name, None):
            raise InvalidOption(
                f"BuildOptions({other.name}={getattr(options, other.name)!r}) is for the route {other.name!r}, and this"
                f" is {route.name!r}. Leave it out, or give backend={other.name!r}."
            )


def _for_parts(routes: Sequence[Backend], options: BuildOptions) -> list[Backend]:
    """The routes that take parts of a model and can honour all of ``options``."""
    wanted = {other.name for other in BACKENDS if getattr(options, other.name, None)}
    return [route for route in routes if hasattr(route, "refusals") and wanted <= {route.name}]


def set_rows(module: TRTModule, rows: Sequence[Attempt]) -> None:
    """Put what became of the routes into the module's report."""
    module.set_report(dataclasses.replace(module.report, routes=tuple(dataclasses.asdict(row) for row in rows)))


def _common(kinds: Sequence[type[BridgeError]]) -> type[BridgeError]:
    """The most particular error that all of ``kinds`` are; ConversionFailed where they have nothing in common."""
    for kind in inspect.getmro(kinds[0]):
        if all(issubclass(other, kind) for other in kinds):
            return ConversionFailed if kind in (BridgeError, ValueError, Exception, object) else kind
    return ConversionFailed


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")
