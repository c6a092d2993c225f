"""ATen forms in the place of operators that have no kernel where a model is captured.

A custom operator may have a kernel for GPUs alone. Its model can still be built for a GPU elsewhere, where a converter
says what the operator means.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from .forms import arguments_of
from .registry import Registration, Snapshot
from .registry.choice import accepting

_KEYS = ("CompositeExplicitAutograd", "CompositeImplicitAutograd")


def without_kernel(snapshot: Snapshot, device: torch.device) -> dict[Any, tuple[Registration, ...]]:
    """The operators that ``snapshot`` has ATen forms for and that have no kernel for ``device``."""
    found: dict[Any, tuple[Registration, ...]] = {}
    for registration in snapshot.registrations:
        for operator in registration.target.overloads() if registration.aten is not None else ():
            if not _has_kernel(operator, device):
                found[operator] = (*found.get(operator, ()), registration)
    return found


@contextlib.contextmanager
def standing_in(operators: Mapping[Any, tuple[Registration, ...]]) -> Iterator[None]:
    """Within, each of ``operators`` is computed by the ATen form of the first of its converters that takes the call."""
    with _StandIns(operators) if operators else contextlib.nullcontext():
        yield


def notes(operators: Mapping[Any, Any], program: ExportedProgram, device: torch.device) -> tuple[str, ...]:
    """What a report should say of those of ``operators`` that are in ``program``."""
    met = sorted({str(n.target).removesuffix(".default") for n in program.graph.nodes if n.target in operators})
    return tuple(
        f"{name} has no kernel for {device.type}: its converter's ATen form stood in, and results are compared with"
        " that form's"
        for name in met
    )


class _StandIns(TorchDispatchMode):
    def __init__(self, operators: Mapping[Any, tuple[Registration, ...]]):
        super().__init__()
        self._operators = operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self._operators:
            return func(*args, **kwargs)
        every, named = arguments_of(func, args, kwargs)
        taking = accepting(self._operators[func], every, named)
        form: Callable[..., Any] | None = taking[0].aten if taking else None
        return func(*args, **kwargs) if form is None else form(*every, **named)


def _has_kernel(operator: torch._ops.OpOverload, device: torch.device) -> bool:
    keys = (torch._C._dispatch_key_for_device(device.type), *_KEYS)
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key) for key in keys)
