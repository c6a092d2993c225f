"""Trials of one form of a converter: a model of one call, by each route, in each place, against eager."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..backends.base import Backend, Place
from ..capture import CapturedModel, capture
from ..errors import BackendUnavailable, BridgeError, VerificationFailed
from ..layer_forms import refusal, summary
from ..lowering import lower
from ..origin import Origin
from ..precision import Precision
from ..progress import Stages
from ..registry import Registration, Snapshot, converter
from ..registry.registration import FORMS
from ..selection import BACKENDS
from ..trt.targets import installed
from ..verify import Row, Tolerance
from .converter_check import Trial
from .one_call import OneCall

_LAYERS = ("tensorrt", "plugin")  # the forms that TensorRT alone can show to be right
_MOST_OF_A_REASON = 500


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Which sizes are dynamic, in words and as capture() takes it."""

    words: str
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """One form of a converter, with one sample and one kind of shapes."""

    registration: Registration
    form: str
    model: OneCall
    sample: str
    shapes: Shapes
    device: torch.device
    tolerance: Tolerance | None
    plans: bool
    stages: Stages

    def trials(self, routes: Sequence[str], precisions: Sequence[str]) -> list[Trial]:
        """One for each route, precision and place where the form can be used."""
        places = self._places()
        forced = _with_form(self.registration, self.form)
        try:
            captured, doubts = self._captured(forced.registration)
        except Exception as error:  # of the user's functions, which may raise anything
            return [self._trial("every route", places[0], p, "failed", reason=_reason(error)) for p in precisions]
        if reason := _not_taken(captured, forced.registration):
            return [self._trial("every route", places[0], p, "skipped", reason=reason) for p in precisions]
        return [
            self._try(route, captured, Precision.parse(precision), place, forced, doubts)
            for route in BACKENDS
            if route.name in routes
            for place in places
            for precision in precisions
        ]

    def _places(self) -> list[Place]:
        here, elsewhere = Place(self.device), Place(self.device, "portable")
        if here.needs_plan or not self.plans:
            return [here]
        return [elsewhere] if self.form in _LAYERS else [here, elsewhere]

    def _captured(self, forced: Registration) -> tuple[CapturedModel, str]:
        """The model with the registration's forms in it, and what speaks against eager as a reference."""
        from ..asked import ordinary_tensors

        others = [r for r in converter.snapshot().registrations if r.target.name != forced.target.name]
        snapshot = Snapshot((forced, *others))
        with ordinary_tensors():
            with self.stages("capturing"):
                captured = capture(self.model, self.model.inputs, converters=snapshot, **self.shapes.options)
            with self.stages("lowering"):
                return lower(captured, snapshot), "; ".join(captured.notes)

    def _try(
        self,
        route: Backend,
        captured: CapturedModel,
        precision: Precision,
        place: Place,
        forced: _Forced,
        doubts: str,
    ) -> Trial:
        from ..asked import Options, ordinary_tensors
        from ..compiler import make

        row = functools.partial(self._trial, route.name, place, str(precision))
        before = len(forced.called)
        try:
            support = route.supports(captured.for_route(route.name), place)
            unfit = "; ".join(support.reasons) or self._unfit(route, place, precision)
            if unfit:
                return row("skipped", reason=unfit)
            verify: bool | Tolerance = self.tolerance or True
            options = Options.parse(precision, route.name, None, not place.target and verify, False, 1, hybrid=False)
            with ordinary_tensors():
                module = make(captured, place, options, self.stages, Origin.of(self.model, None))
        except BackendUnavailable as error:
            return row("skipped", reason=_reason(error))
        except VerificationFailed as error:
            return row("differs", error=_worst(error.rows), reason=_reason(error))
        except Exception as error:
            return row("failed", reason=_reason(error))
        if unused := self._unused(route, captured, place, module.report.notes, len(forced.called) - before):
            return row("skipped", reason=unused)
        if place.target:
            return row("built")
        return row("agrees", error=_worst(module.report.verification), reason=doubts)

    def _unfit(self, route: Backend, place: Place, precision: Precision) -> str | None:
        """Why the form is not for this route, place and precision."""
        if self.form == "onnx" and route.name != "onnx":
            return "an ONNX form is for the ONNX route"
        if self.form == "aten" and route.name == "torch2trt":
            return "torch2trt traces the eager model, in which no ATen form stands"
        if route.name == "torch2trt" and precision.name != "fp32":
            return "torch2trt computes products alone in 16 bits, and leaves the call in the model's own dtype"
        if self.form not in _LAYERS:
            return None
        if not place.needs_plan:
            return "on the CPU there is no TensorRT"
        alone = dataclasses.replace(self.registration, tensorrt=None) if self.form == "plugin" else self.registration
        return refusal(alone, installed())

    def _unused(
        self, route: Backend, captured: CapturedModel, place: Place, notes: Sequence[str], called: int
    ) -> str | None:
        """Why the route did not use the form, though it made a module of the call."""
        if self.form == "aten" or (self.form == "onnx" and called):
            return None
        calls = captured.for_route(route.name).calls.values()
        if self.form in _LAYERS and set(summary(calls)) <= set(notes):
            return None
        served = getattr(route, "served", None)
        reasons = [served(call, place).reason for call in calls] if served is not None else []
        return "; ".join(filter(None, reasons) if any(reasons) else notes)

    def _trial(
        self, route: str, place: Place, precision: str, outcome: str, error: float = math.nan, reason: str = ""
    ) -> Trial:
        where = "a GPU elsewhere" if place.target else str(place)
        return Trial(self.form, route, where, self.sample, precision, self.shapes.words, outcome, error, reason)


@dataclasses.dataclass(frozen=True)
class _Forced:
    """A registration of which routes use one form, and what notes the calls of that form in this process."""

    registration: Registration
    called: list[None]


def _not_taken(captured: CapturedModel, registration: Registration) -> str | None:
    """Why ``registration`` takes no call of the captured model; None where it takes one."""
    found = [c for each in (captured, *captured.routes.values()) for c in each.conversions]
    own = [conversion for conversion in found if conversion.registration is registration]
    if any(not conversion.rejected for conversion in own):
        return None
    return "the call is not taken: " + "; ".join(dict.fromkeys(conversion.rejected for conversion in own))


def _with_form(registration: Registration, form: str) -> _Forced:
    called: list[None] = []
    if form in _LAYERS:  # which may be called in another process, where it is found as it is
        hidden = form == "tensorrt" and registration.plugin is not None
        return _Forced(dataclasses.replace(registration, plugin=None) if hidden else registration, called)
    function = getattr(registration, form)

    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        called.append(None)
        return function(*args, **kwargs)

    forms: dict[str, Any] = {name: getattr(registration, name) if name == "aten" else None for name in FORMS}
    return _Forced(dataclasses.replace(registration, **{**forms, form: noting}), called)


def _worst(rows: Iterable[Mapping[str, Any]]) -> float:
    errors = [row["relative_l2"] if math.isnan(row["unequal"]) else row["unequal"] for row in rows]
    return max(errors, default=math.nan)


def _reason(error: Exception) -> str:
    if isinstance(error, VerificationFailed):
        return "; ".join(str(Row(**row)) for row in error.rows if not row["passed"])
    text = str(error) if isinstance(error, BridgeError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if len(text) <= _MOST_OF_A_REASON else f"{text[:_MOST_OF_A_REASON]} ..."
