"""Which registrations take a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import ConverterFailed
from .registration import Call, Registration


def accepting(
    registrations: Sequence[Registration],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    module: nn.Module | None = None,
    place: str = "",
    rejected: Callable[[Registration, str], None] = lambda *_: None,
) -> tuple[Registration, ...]:
    """Those of ``registrations`` that take a call with these arguments, in order.

    Args:
        rejected: is told of each that does not, with the reason.

    Raises:
        ConverterFailed: a ``when=`` raised, or answered neither a bool nor a reason.
    """
    taking = []
    for registration in registrations:
        if registration.when is None:
            taking.append(registration)
            continue
        answer = _ask(registration, Call(args, kwargs, place, module, _names(registration, args, kwargs, module)))
        if answer is True:
            taking.append(registration)
        else:
            rejected(registration, answer if isinstance(answer, str) else "its when= rejects the call")
    return tuple(taking)


def _ask(registration: Registration, call: Call) -> bool | str:
    assert registration.when is not None
    where = f" (in {call.place})" if call.place else ""
    try:
        answer = registration.when(call)
    except Exception as error:
        raise ConverterFailed(
            f"when= of the converter of {registration.target}{where}, {registration.origin}, raised"
            f" {type(error).__name__}: {error}"
        ) from error
    if not isinstance(answer, (bool, str)):
        raise ConverterFailed(
            f"when= of the converter of {registration.target}{where}, {registration.origin}, answered {answer!r}; it"
            " is to answer True, False, or a sentence that says why not."
        )
    return answer


def _names(
    registration: Registration, args: tuple[Any, ...], kwargs: Mapping[str, Any], module: nn.Module | None
) -> dict[str, Any]:
    """The arguments by the names that the converter's form has for them; none where they do not fit it."""
    form = registration.aten or registration.onnx or registration.tensorrt
    first: tuple[Any, ...] = (None,) if form is registration.tensorrt else ()  # the context
    first += (module,) if module is not None else ()
    try:
        bound = inspect.signature(form).bind(*first, *args, **kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}
    bound.apply_defaults()
    return dict(list(bound.arguments.items())[len(first) :])
