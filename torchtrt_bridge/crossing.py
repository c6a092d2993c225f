"""A converter's call as plain data, for a child process, which imports the author's module and finds the form there.

A form is a Python function. It crosses by the name of its module; so a form of a notebook's cell, of ``__main__`` or of
another function's inside stays here, and so does the call of a module that is more than plain data.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any

import torch
from torch.export import ExportedProgram

from .forms import FormCall, Slot, call_of, tensors_of
from .plain_modules import module_from_plain, module_to_plain
from .registry import Converter, Registration, converter
from .structure import Node, Unstorable, describe, rebuild
from .trt.handwritten import Expected


def to_plain(call: FormCall) -> dict[str, Any] | None:
    """``call`` as JSON-able data; None where it cannot cross (:func:`stays` says why)."""
    if stays(call) is not None:
        return None
    registration = call.registration
    assert registration is not None
    return {
        "module": registration.origin.module,
        "converter": _key(registration),
        "args": describe(tuple(call.args), _slot),
        "kwargs": describe(dict(call.kwargs), _slot),
        "place": call.place,
        "original": str(call.original) if isinstance(call.original, torch._ops.OpOverload) else None,
        "instance": None if call.module is None else module_to_plain(call.module),
        "state": {name: slot.index for name, slot in call.state.items()},
    }


def stays(call: FormCall) -> str | None:
    """Why ``call`` cannot be handed to a child process; None if it can."""
    registration = call.registration
    assert registration is not None
    module = sys.modules.get(registration.origin.module)
    if registration.origin.module == "__main__" or getattr(module, "__spec__", None) is None:
        return f"the converter of {registration.target} is not in a module that another process could import"
    assert module is not None
    if registration not in _registrations(module):
        return f"the converter of {registration.target} is not to be found in {registration.origin.module} by name"
    try:
        describe((tuple(call.args), dict(call.kwargs)), _slot)
        if call.module is not None:
            module_to_plain(call.module)
    except Unstorable as error:
        return f"the converter of {registration.target} is called with more than tensors and plain data: {error}"
    return None


def calls_of(program: ExportedProgram) -> list[dict[str, Any]]:
    """The opaque calls in ``program`` as JSON-able data, with the schema of each one's operator and the dtype and shape
    of its results."""
    found = []
    for node in program.graph.nodes:
        if (call := call_of(node.target)) is not None:
            results = [Expected.of(tensor) for tensor in tensors_of(node.meta["val"])]
            found.append({
                "schema": str(node.target._schema).partition("::")[2],
                "call": to_plain(call),
                "results": [[each.dtype, list(each.shape)] for each in results],
            })  # fmt: skip
    return found


def from_plain(data: Mapping[str, Any]) -> FormCall:
    """The call that :func:`to_plain` described.

    Raises:
        LookupError: the converter, or what it converts, is not there in this process.
    """
    module = importlib.import_module(data["module"])
    for once_more in (True, False):
        registration = next((r for r in _registrations(module) if _key(r) == data["converter"]), None)
        if registration is None and once_more:
            module = importlib.reload(module)  # the author changed it since, and reloaded it there
    if registration is None:
        raise LookupError(f"{data['module']}, imported anew, has no converter of {data['converter'][0]}")
    return FormCall(
        registration=registration,
        original=_original(registration, data["original"]),
        args=rebuild(data["args"], Slot),
        kwargs=rebuild(data["kwargs"], Slot),
        place=data["place"],
        module=None if data["instance"] is None else module_from_plain(data["instance"]),
        state={name: Slot(index) for name, index in data["state"].items()},
    )


def _original(registration: Registration, operator: str | None) -> Any:
    """What the call calls: ``operator``, or the target itself."""
    target = registration.target
    if operator is None:
        called = {"module": "forward", "autograd function": "apply"}.get(target.kind)
        return getattr(target.object, called) if called else target.object
    namespace, name, overload = operator.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _registrations(module: ModuleType) -> Iterator[Registration]:
    """Those that a module's import brings: registered, or held by a name of the module's."""
    held = [value for value in vars(module).values() if isinstance(value, Converter)]
    yield from converter.list()
    for each in held:
        yield each.registration


def _key(registration: Registration) -> list[Any]:
    """What tells a registration from others, and from itself before its author changed it."""
    origin = registration.origin
    forms = [getattr(registration, form) for form in registration.forms]
    return [str(registration.target), origin.module, origin.qualname, *(_digest(form) for form in forms)]


def _digest(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return hashlib.sha256(_text(code).encode()).hexdigest() if code is not None else ""


def _text(code: CodeType) -> str:
    """A code object's instructions and constants, without where it stands."""
    constants = [_text(each) if isinstance(each, CodeType) else _in_order(each) for each in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, constants))


def _in_order(constant: Any) -> str:
    """``constant`` as text; a set, whose order is another in each process, sorted."""
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _slot(_: str, value: Any) -> Node | None:
    return value.index if isinstance(value, Slot) else None  # type: ignore[return-value]
