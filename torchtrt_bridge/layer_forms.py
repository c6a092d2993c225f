"""Which calls of converters become TensorRT layers made by the author's own function, with the TensorRT in use."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from .forms import FormCall
from .registry import Registration
from .trt.flavor import Flavor

if TYPE_CHECKING:
    from .backends.base import Served
    from .capture import CapturedModel


def layer_form(registration: Registration, flavor: Flavor) -> Callable[..., Any] | None:
    """The function that adds the layers: the plugin's where there can be plugins, else the TensorRT form; None where
    :func:`refusal` says why."""
    if registration.flavours and flavor.name not in registration.flavours:
        return None
    return registration.plugin if registration.plugin is not None and flavor.has_plugins else registration.tensorrt


def makes_layers(call: FormCall, flavor: Flavor) -> bool:
    """Whether ``call`` has such a function."""
    return call.registration is not None and layer_form(call.registration, flavor) is not None


def refusal(registration: Registration, flavor: Flavor) -> str | None:
    """Why a form for TensorRT cannot serve with ``flavor``; None where it can, or where there is none."""
    of = f"the converter of {registration.target}"
    if registration.tensorrt is None and registration.plugin is None:
        return None
    if registration.flavours and flavor.name not in registration.flavours:
        return f"{of} is for {' and '.join(registration.flavours)}, and {flavor.name} is in use"
    if registration.tensorrt is None and not flavor.has_plugins:
        return f"{of} makes a plugin, which {flavor.name} does not have; a TensorRT form would do without"
    return None


def unserved(captured: CapturedModel, served: Callable[[FormCall], Served]) -> tuple[str, ...]:
    """Why a route has nothing for calls of operators that only a converter says the meaning of, if that is not ATen."""
    reasons: dict[str, None] = {}
    for call in captured.calls.values():
        registration, original = call.registration, call.original
        foreign = isinstance(original, torch._ops.OpOverload) and original.namespace not in ("aten", "prims")
        if registration is not None and registration.aten is None and foreign:
            answer = served(call)
            if answer.form is None and answer.reason:
                reasons[f"{answer.reason} (in {call.place or 'the top module'})"] = None
    return tuple(reasons)


def target_of(call: FormCall) -> str:
    """What is converted, by the converter's name for it."""
    return str(call.registration.target) if call.registration is not None else ""


def summary(calls: Iterable[FormCall]) -> list[str]:
    """A sentence for the report on the calls that became layers."""
    counts = collections.Counter(map(target_of, calls))
    if not counts:
        return []
    made = ", ".join(f"{target} ({count} time{'s' * (count > 1)})" for target, count in counts.items())
    return [f"converters made the TensorRT layers of {made}"]
