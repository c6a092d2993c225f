"""Calls of Python functions and modules that converters are for, kept whole while a model is captured.

torch.export sees operators only. So for as long as it traces, each such function is replaced by one that calls an
operator made for the call; :mod:`.lowering` spells it out, or leaves it to a route that has a form for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils import _pytree

from . import forms
from .errors import ArgumentWritten
from .forms import FormCall, tensors_of
from .python_calls import intercepted, normalized, recorded
from .registry import Conversion, Registration, Snapshot
from .registry.choice import accepting
from .writes import NoWrites


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Calls that were kept: by the name of each one's operator, the call (of no converter yet), and the registrations
    that take it, best first. ``rejected`` are those that no converter took. ``library`` is what the operators live in.
    """

    calls: dict[str, tuple[FormCall, tuple[Registration, ...]]]
    rejected: list[Conversion]
    library: torch.library.Library


@contextlib.contextmanager
def keeping(model: nn.Module, snapshot: Snapshot) -> Iterator[Kept]:
    """Within, calls in this thread of what ``snapshot`` has converters for are kept whole where they are traced."""
    kept, span = Kept({}, [], forms.library()), _Span()
    try:
        with intercepted(model, snapshot.of_python, lambda registrations: _Keeper(kept, registrations, model, span)):
            yield kept
    finally:
        span.over = True


class _Span:
    """When and where calls are kept: by the thread that traces, until it is done (another may have imported what stood
    in a function's place then), and not inside of what is kept already."""

    def __init__(self) -> None:
        self.over, self._inside, self._thread = False, 0, threading.get_ident()

    def holds(self) -> bool:
        return not (self.over or self._inside or threading.get_ident() != self._thread)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Within, an original is run for what it gives: what it calls is part of it."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class _Keeper:
    """Calls one target, and keeps the call where it is traced in this thread."""

    def __init__(self, kept: Kept, registrations: tuple[Registration, ...], model: nn.Module, span: _Span):
        self._kept, self._registrations, self._model, self._span = kept, registrations, model, span

    def __call__(self, original: Callable[..., Any], args: Any, kwargs: Any, module: nn.Module | None = None) -> Any:
        if not self._span.holds():
            return original(*args, **kwargs) if module is None else original(module, *args, **kwargs)
        args, kwargs = normalized(original, args, kwargs, module)
        call, values = recorded(original, args, kwargs, module)
        taking = self._taking(call, values, args, kwargs)
        if not taking:
            return original(*args, **kwargs) if module is None else original(module, *args, **kwargs)
        return self._keep(call, values, taking)

    def _taking(self, call: FormCall, values: Sequence[Any], args: Any, kwargs: Any) -> tuple[Registration, ...]:
        """The registrations that take the call; none where it does what an operator of a graph cannot."""
        module = call.module
        place = next((n for n, part in self._model.named_modules() if part is module), "") if module is not None else ""

        def rejected(registration: Registration, reason: str) -> None:
            self._kept.rejected.append(Conversion(registration, place, reason))

        taking = accepting(self._registrations, args, kwargs, module, place, rejected)
        if taking and self._writes(call, values):  # nn.ReLU(inplace=True), for one
            for registration in taking:
                rejected(registration, "it writes to its argument, and an operator of a graph cannot")
            return ()
        return taking

    def _writes(self, call: FormCall, values: Sequence[Any]) -> bool:
        """Whether a call writes to its arguments, as far as it can be followed. Nothing of it is recorded."""
        with disable_proxy_modes_tracing(), self._span.inside(), NoWrites(values, str(call)):
            try:
                call.run(call.original, values)
            except ArgumentWritten:
                return True
            except Exception:  # its ATen form will say what it gives
                return False
        return False

    def _keep(self, call: FormCall, values: Sequence[Any], taking: tuple[Registration, ...]) -> Any:
        result: list[Any] = []
        operator = _operator(self._kept, values, _fake(call, taking, self._span, result))
        self._kept.calls[str(operator)] = call, taking
        tensors = iter(operator(*values))
        return _pytree.tree_map(lambda leaf: next(tensors) if isinstance(leaf, torch.Tensor) else leaf, result[0])


def _fake(
    call: FormCall, taking: Sequence[Registration], span: _Span, result: list[Any]
) -> Callable[..., list[torch.Tensor]]:
    """What the operator of ``call`` gives for fake tensors; the whole result, with its structure, goes to ``result``.
    (torch's tables hold it: it must not hold the operator's library.)"""

    def fake(*values: Any) -> list[torch.Tensor]:
        with span.inside():
            found = _traced(call, taking, values)
        result[:] = [found]
        return [tensor.clone() for tensor in tensors_of(found)]  # an operator's results are tensors of its own

    return fake


def _traced(call: FormCall, taking: Sequence[Registration], values: Sequence[Any]) -> Any:
    """The original's result, of fake tensors; the ATen form's where the original is more than tracing can follow."""
    form = next((r.aten for r in taking if r.aten is not None), None)
    try:
        return call.run(call.original, values)
    except Exception:
        if form is None:
            raise
    return call.run(form, values)


def _operator(kept: Kept, values: Sequence[Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    name = f"kept_{next(forms.count)}"
    arguments = ", ".join(f"{forms.kind_of(value)} a{i}" for i, value in enumerate(values))
    kept.library.define(f"{name}({arguments}) -> Tensor[]")
    torch.library.register_fake(f"{forms.NAMESPACE}::{name}", fake, lib=kept.library)
    found: torch._ops.OpOverload = getattr(getattr(torch.ops, forms.NAMESPACE), name).default
    return found
