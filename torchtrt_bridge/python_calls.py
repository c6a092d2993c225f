"""Calls of Python functions and modules, taken by somebody else for a while; and such a call as data."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree

from .forms import FormCall, Slot
from .registry import Registration
from .registry.target import STANDS_FOR

_MISSING = object()


class Taker(Protocol):
    """Is called in the place of ``original``; of a module, ``original`` is its class's ``forward``."""

    def __call__(
        self, original: Callable[..., Any], args: Any, kwargs: Any, module: nn.Module | None = None
    ) -> Any: ...


@contextlib.contextmanager
def intercepted(
    model: nn.Module, registrations: Sequence[Registration], taker: Callable[[tuple[Registration, ...]], Taker]
) -> Iterator[None]:
    """Within, calls of the functions and classes that ``registrations`` are for go to what ``taker`` gives for those of
    one target: by any thread, and from anywhere that a name of ``model``'s code leads."""
    by_target: dict[int, list[Registration]] = {}
    for registration in registrations:
        by_target.setdefault(id(registration.target.object), []).append(registration)
    with contextlib.ExitStack() as stack:
        for of_one in by_target.values():
            target = of_one[0].target
            patch = {"module": _module, "autograd function": _autograd_function, "function": _function}[target.kind]
            for holder, name, value in patch(target.object, taker(tuple(of_one)), model):
                stack.enter_context(_replaced(holder, name, value))
        yield


def normalized(original: Callable[..., Any], args: Any, kwargs: Any, module: nn.Module | None) -> tuple[Any, Any]:
    """The arguments in the order of the original's signature, its defaults among them."""
    try:
        signature = inspect.signature(original)
    except (TypeError, ValueError):  # not every builtin says
        return tuple(args), dict(kwargs)
    first = () if module is None else (module,)
    bound = signature.bind(*first, *args, **kwargs)
    bound.apply_defaults()
    return bound.args[len(first) :], bound.kwargs


def recorded(
    original: Callable[..., Any], args: Any, kwargs: Any, module: nn.Module | None
) -> tuple[FormCall, list[Any]]:
    """A call, of no converter yet, and the tensors and sizes in it."""
    values: list[Any] = []

    def slot(leaf: Any) -> Any:
        if not isinstance(leaf, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
            return leaf
        values.append(leaf)
        return Slot(len(values) - 1)

    args, kwargs = _pytree.tree_map(slot, (tuple(args), dict(kwargs)))
    state = {} if module is None else {name: slot(tensor) for name, tensor in _state(module)}
    return FormCall(None, original, args, kwargs, module=module, state=state), values


def _state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _module(target: type[nn.Module], take: Taker, model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    original = target.forward

    @_followed
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # a subclass that calls its parent's, or Dynamo, which traces the branches of torch.cond
        if type(self).forward is not forward or torch.compiler.is_dynamo_compiling():
            return original(self, *args, **kwargs)
        return take(original, args, kwargs, self)

    yield target, "forward", forward


def _autograd_function(target: Any, take: Taker, model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    original = target.forward
    separate = target.setup_context is not torch.autograd.Function.setup_context

    @_followed
    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return original(*args, **kwargs)
        if separate:
            return take(original, args, kwargs)
        context, *rest = args

        def with_context(*given: Any, **named: Any) -> Any:
            return original(context, *given, **named)

        with_context.__signature__ = _without_first(original)  # type: ignore[attr-defined]
        return take(with_context, rest, kwargs)

    yield target, "forward", staticmethod(forward)


def _without_first(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _function(target: Any, take: Taker, model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Wherever the function is a name: of a module of Python, of the globals that the model's code sees, of a module of
    the model. (What holds it otherwise, as a dict of functions does, goes on calling it.)"""

    @_followed
    @functools.wraps(target)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return target(*args, **kwargs)
        return take(target, args, kwargs)

    setattr(replacement, STANDS_FOR, target)
    namespaces = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
    namespaces += [getattr(type(part).forward, "__globals__", {}) for part in model.modules()]
    namespaces += [vars(part) for part in model.modules()]
    for namespace in {id(n): n for n in namespaces}.values():
        for name, value in list(namespace.items()):
            if value is target:
                yield namespace, name, replacement


def _followed(function: Any) -> Any:
    """``function`` as code of no file. Dynamo, which traces torch.cond's branches, is told to leave this package's
    files alone (:func:`.runtime.tracing.keep_dynamo_out`), and would give up at code of them."""
    function.__code__ = function.__code__.replace(co_filename="<a converter's target>")
    return function


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
