"""Calls of Python functions and modules that converters are for, kept whole while a model is captured.

torch.export sees operators only. So for as long as it traces, each such function is replaced by one that calls an
operator made for the call; :mod:`.lowering` spells it out, or leaves it to a route that has a form for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from . import forms
from .forms import FormCall, Slot, tensors_of
from .registry import Conversion, Registration, Snapshot
from .registry.choice import accepting

_MISSING = object()


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
    kept = Kept({}, [], forms.library())
    inside = threading.local()
    by_target: dict[int, list[Registration]] = {}
    for registration in snapshot.of_python:
        by_target.setdefault(id(registration.target.object), []).append(registration)
    with contextlib.ExitStack() as stack:
        for registrations in by_target.values():
            target = registrations[0].target
            keeper = _Keeper(kept, tuple(registrations), model, inside)
            patch = {"module": _module, "autograd function": _autograd_function, "function": _function}[target.kind]
            for holder, name, value in patch(target.object, keeper, model):
                stack.enter_context(_replaced(holder, name, value))
        yield kept


class _Keeper:
    """Calls one target, and keeps the call where it is traced in this thread."""

    def __init__(self, kept: Kept, registrations: tuple[Registration, ...], model: nn.Module, inside: Any):
        self._kept, self._registrations, self._model = kept, registrations, model
        self._thread = threading.get_ident()
        self._inside = inside  # an original that is run for its results' form: what it calls is part of it

    def __call__(self, original: Callable[..., Any], args: Any, kwargs: Any, module: nn.Module | None = None) -> Any:
        if threading.get_ident() != self._thread or getattr(self._inside, "flag", False):
            return original(*args, **kwargs) if module is None else original(module, *args, **kwargs)
        args, kwargs = _normalized(original, args, kwargs, module)
        place = next((name for name, part in self._model.named_modules() if part is module), "")

        def rejected(registration: Registration, reason: str) -> None:
            self._kept.rejected.append(Conversion(registration, place, reason))

        taking = accepting(self._registrations, args, kwargs, module, place, rejected)
        if not taking:
            return original(*args, **kwargs) if module is None else original(module, *args, **kwargs)
        return self._keep(original, args, kwargs, module, taking)

    def _keep(
        self,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
        module: nn.Module | None,
        taking: tuple[Registration, ...],
    ) -> Any:
        values: list[Any] = []

        def slot(leaf: Any) -> Any:
            if not isinstance(leaf, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
                return leaf
            values.append(leaf)
            return Slot(len(values) - 1)

        args, kwargs = _pytree.tree_map(slot, (tuple(args), dict(kwargs)))
        state = {} if module is None else {name: slot(tensor) for name, tensor in _state(module)}
        call = FormCall(None, original, args, kwargs, module=module, state=state)
        result: list[Any] = []
        operator = _operator(self._kept, values, _fake(call, taking, self._inside, result))
        self._kept.calls[str(operator)] = call, taking
        tensors = iter(operator(*values))
        return _pytree.tree_map(lambda leaf: next(tensors) if isinstance(leaf, torch.Tensor) else leaf, result[0])


def _fake(
    call: FormCall, taking: Sequence[Registration], inside: Any, result: list[Any]
) -> Callable[..., list[torch.Tensor]]:
    """What the operator of ``call`` gives for fake tensors; the whole result, with its structure, goes to ``result``.
    (torch's tables hold it: it must not hold the operator's library.)"""

    def fake(*values: Any) -> list[torch.Tensor]:
        inside.flag = True
        try:
            found = _traced(call, taking, values)
        finally:
            inside.flag = False
        result[:] = [found]
        return tensors_of(found)

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


def _normalized(original: Callable[..., Any], args: Any, kwargs: Any, module: nn.Module | None) -> tuple[Any, Any]:
    """The arguments in the order of the original's signature, its defaults among them."""
    try:
        signature = inspect.signature(original)
    except (TypeError, ValueError):  # not every builtin says
        return tuple(args), dict(kwargs)
    first = () if module is None else (module,)
    bound = signature.bind(*first, *args, **kwargs)
    bound.apply_defaults()
    return bound.args[len(first) :], bound.kwargs


def _state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _module(target: type[nn.Module], keep: _Keeper, model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    original = target.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if type(self).forward is not forward:  # a subclass that calls its parent's
            return original(self, *args, **kwargs)
        return keep(original, args, kwargs, self)

    yield target, "forward", forward


def _autograd_function(target: Any, keep: _Keeper, model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    original = target.forward
    separate = target.setup_context is not torch.autograd.Function.setup_context

    def forward(*args: Any, **kwargs: Any) -> Any:
        if separate:
            return keep(original, args, kwargs)
        context, *rest = args

        def with_context(*given: Any, **named: Any) -> Any:
            return original(context, *given, **named)

        with_context.__signature__ = _without_first(original)  # type: ignore[attr-defined]
        return keep(with_context, rest, kwargs)

    yield target, "forward", staticmethod(forward)


def _without_first(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _function(target: Any, keep: _Keeper, model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Wherever the function is a name: of a module of Python, of the globals that the model's code sees, of a module of
    the model. (What holds it otherwise, as a dict of functions does, goes on calling it.)"""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return keep(target, args, kwargs)

    namespaces = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
    namespaces += [getattr(type(part).forward, "__globals__", {}) for part in model.modules()]
    namespaces += [vars(part) for part in model.modules()]
    for namespace in {id(n): n for n in namespaces}.values():
        for name, value in list(namespace.items()):
            if value is target:
                yield namespace, name, replacement


@contextlib.contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """``holder``, a class or a namespace, with ``value`` under ``name``; afterwards as it was."""
    if isinstance(holder, dict):
        before = holder[name]
        holder[name] = value
        try:
            yield
        finally:
            holder[name] = before
        return
    own = vars(holder).get(name, _MISSING)
    setattr(holder, name, value)
    try:
        yield
    finally:
        if own is _MISSING:
            delattr(holder, name)
        else:
            setattr(holder, name, own)
