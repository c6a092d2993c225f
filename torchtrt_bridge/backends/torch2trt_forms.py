"""Converters' TensorRT layers on the torch2trt route, in the place of torch2trt's own converters.

The route traces the eager model, so a call is seen as it happens: of a function or a module where its name is, of an
operator by whoever watches them all (:class:`.torch2trt_tensors.Tensors`). torch computes the example's results as
ever; the form gives TensorRT's tensors for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..forms import FormCall, arguments_of, tensors_of
from ..layer_forms import layer_form, makes_layers, target_of
from ..python_calls import intercepted, normalized, recorded
from ..registry import Registration
from ..registry.choice import accepting
from ..trt.conversion import ConversionContext
from ..trt.flavor import Flavor
from ..trt.handwritten import Expected, add_layers
from ..trt.handwritten import tensors_of as results_of
from .torch2trt_tensors import Tensors


class Forms:
    """The forms that serve one trace. It holds constants of the network, and must live until the plan is there.

    Args:
        calls: what the captured model calls of converters; their registrations serve.
        network: TensorRT's own.

    Attributes:
        made: the calls that became layers.
    """

    def __init__(self, calls: Iterable[FormCall], flavor: Flavor, network: Any):
        self._registrations = tuple(
            dict.fromkeys(call.registration for call in calls if call.registration and makes_layers(call, flavor))
        )
        self._ctx = ConversionContext(flavor, network)
        self._thread = threading.get_ident()
        self.made: list[FormCall] = []

    @contextlib.contextmanager
    def serving(self, model: nn.Module, tensors: Tensors, running: Callable[[], nn.Module | None]) -> Iterator[None]:
        """Within, calls that ``model``, which is traced in this thread, makes of what they are for become layers.
        ``running()`` is the part of it that runs."""

        def taker(registrations: tuple[Registration, ...]) -> Any:
            return functools.partial(self._called, model, tensors, registrations)

        if not self._registrations:
            yield
            return
        tensors.convert = functools.partial(self._operator, lambda: _path(model, running()), tensors)
        python = [r for r in self._registrations if r.target.kind != "operator"]
        try:
            with intercepted(model, python, taker):
                yield
        finally:
            tensors.convert = None

    def _called(
        self,
        model: nn.Module,
        tensors: Tensors,
        registrations: tuple[Registration, ...],
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
        module: nn.Module | None = None,
    ) -> Any:
        """A call of a function or module: with ``original``'s result, once that has its layers."""
        first = () if module is None else (module,)
        if threading.get_ident() != self._thread or tensors.in_operator:
            return original(*first, *args, **kwargs)
        args, kwargs = normalized(original, args, kwargs, module)
        place = _path(model, module)
        taking = accepting(registrations, args, kwargs, module, place)
        if not taking:
            return original(*first, *args, **kwargs)
        with tensors.aside():
            result = original(*first, *args, **kwargs)
        call, values = recorded(original, args, kwargs, module)
        self._convert(tensors, dataclasses.replace(call, registration=taking[0], place=place), values, result)
        return result

    def _operator(
        self, where: Callable[[], str], tensors: Tensors, operator: Any, args: Any, kwargs: Any, result: Any
    ) -> None:
        """An operator that ran, with its result."""
        registrations = [r for r in self._registrations if r.target.matches(operator)]
        if not registrations:
            return
        args, kwargs = arguments_of(operator, args, kwargs)
        place = where()
        taking = accepting(registrations, args, kwargs, place=place)
        if taking:
            call, values = recorded(operator, args, kwargs, None)
            self._convert(tensors, dataclasses.replace(call, registration=taking[0], place=place), values, result)

    def _convert(self, tensors: Tensors, call: FormCall, values: list[torch.Tensor], result: Any) -> None:
        ctx = self._ctx
        assert call.registration is not None
        form = layer_form(call.registration, ctx.flavor)
        assert form is not None
        found = [tensors.find(value) for value in values]
        given = [value if value is not None else ctx.constant(tensor) for value, tensor in zip(found, values)]
        args, kwargs = call.bind(given)
        results = tensors_of(result)
        expected = [Expected.of(tensor) for tensor in results]
        with ctx.scope(call.place, target_of(call)):
            made = add_layers(ctx, form, args, kwargs, functools.partial(results_of, ctx, expected))
        for tensor, value in zip(results, made):
            tensors.put(tensor, value)
        self.made.append(call)


def _path(model: nn.Module, module: nn.Module | None) -> str:
    return next((name for name, part in model.named_modules() if part is module), "")
