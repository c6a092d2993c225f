"""A converter's call as one operator of a graph: opaque, for a route that has a form for it, or spelled out.

Each call gets an operator of its own, so that its name says which call it is, and its arguments are the tensors and
sizes of the call alone; whatever else the author's function is called with is part of the :class:`FormCall`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree

from .errors import BridgeError, ConverterFailed
from .registry import Registration
from .writes import NoWrites

NAMESPACE = "torchtrt_bridge_calls"

count = itertools.count()
_defined: weakref.WeakValueDictionary[str, FormCall] = weakref.WeakValueDictionary()


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands, among the arguments of a call, for the operator's argument of this number."""

    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class FormCall:
    """One call of what a converter is for.

    Args:
        registration: the converter that takes it; None where the call keeps its own lowering.
        original: what the model calls: an operator, or a function of Python (of an ``nn.Module`` class, its
            ``forward``, which takes the module first).
        args, kwargs: the target's arguments in its own order, a :class:`Slot` for each tensor and size.
        place: the path of the user's module, empty for the model itself.
        module: the instance, where the target is an ``nn.Module`` class. The author's function takes it first.
        state: the slots of its parameters and buffers, by name.
        library: what its operator lives in, and as long as.
    """

    registration: Registration | None
    original: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: str = ""
    module: nn.Module | None = None
    state: Mapping[str, Slot] = dataclasses.field(default_factory=dict)
    library: torch.library.Library | None = dataclasses.field(default=None, repr=False)

    def bind(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the author's TensorRT or ONNX form, with ``values``, the operator's arguments, in them. A
        module comes as a :class:`ModuleView`, whose parameters are the values that belong to them."""
        args, kwargs = self._filled(values)
        if self.module is not None:
            args = (ModuleView(self.module, {name: values[slot.index] for name, slot in self.state.items()}), *args)
        return args, kwargs

    def run(self, form: Callable[..., Any], values: Sequence[Any]) -> Any:
        """What ``form``, the ATen form or the original, gives for ``values``."""
        args, kwargs = self._filled(values)
        if self.module is None:
            return form(*args, **kwargs)
        state = {f"module.{name}": values[slot.index] for name, slot in self.state.items()}
        return torch.func.functional_call(_Applied(self.module, form), state, args, kwargs)

    def spelled(self, values: Sequence[Any], expected: Any = None) -> list[torch.Tensor]:
        """The tensors of the ATen form, or of the original where there is none, for ``values``.

        Args:
            expected: what the original gives, as fake tensors.

        Raises:
            ConverterFailed: the form raised, or gave something else.
        """
        form = self.registration.aten if self.registration is not None else None
        if form is None:
            return tensors_of(self.run(self.original, values))
        try:
            with NoWrites(values, str(self)):
                found = tensors_of(self.run(form, values))
        except BridgeError:
            raise
        except Exception as error:
            raise ConverterFailed(f"{self} raised {type(error).__name__}: {error}") from error
        if expected is not None:
            self.check(found, tensors_of(expected))
        return found

    def check(self, found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
        """Raise where ``found``, the results of a form, differ from ``expected`` in number, dtype or shape.

        Raises:
            ConverterFailed: it names the converter, the place in the model, what was expected and what came.
        """
        if len(found) != len(expected):
            raise ConverterFailed(f"{self} gives {_many(len(found))}, and what it converts {_many(len(expected))}.")
        for number, (one, other) in enumerate(zip(found, expected)):
            which = f"result {number}" if len(found) > 1 else "a result"
            if one.dtype != other.dtype:
                raise ConverterFailed(f"{self} gives {which} of {one.dtype}; expected: {other.dtype}.")
            same_rank = one.dim() == other.dim()
            if not same_rank or any(statically_known_true(a != b) for a, b in zip(one.shape, other.shape)):
                raise ConverterFailed(f"{self} gives {which} of shape {_shape(one)}; expected: {_shape(other)}.")

    def _filled(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = _pytree.tree_map(
            lambda leaf: values[leaf.index] if isinstance(leaf, Slot) else leaf, (tuple(self.args), dict(self.kwargs))
        )
        return args, kwargs

    def __str__(self) -> str:
        place = self.place or "the model's own forward"
        if self.registration is None:
            return f"{getattr(self.original, '__qualname__', self.original)} in {place}"
        origin = self.registration.origin
        where = f"{origin.module}.{origin.qualname}, {origin.file}:{origin.line}"
        return f"The converter of {self.registration.target} in {place} ({where})"


class ModuleView:
    """A module as a TensorRT or ONNX form sees it: its attributes, and for its parameters and buffers the values that
    they have in the network that is being made."""

    def __init__(self, module: nn.Module, values: Mapping[str, Any], prefix: str = ""):
        self._module, self._values, self._prefix = module, values, prefix

    def __getattr__(self, name: str) -> Any:
        path = f"{self._prefix}{name}"
        if path in self._values:
            return self._values[path]
        found = getattr(self._module, name)
        return ModuleView(found, self._values, f"{path}.") if isinstance(found, nn.Module) else found

    def __repr__(self) -> str:
        return f"<view of {type(self._module).__name__}>"


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """The operator of a call, and what it computes."""

    call: FormCall
    operator: torch._ops.OpOverload
    body: Callable[..., Any]


def define(call: FormCall, values: Sequence[Any], result: Any, opaque: bool) -> Operation:
    """An operator for ``call``, in its library.

    Args:
        values: its arguments, nodes of a graph.
        result: what it gives, fake: a tensor, or a sequence of tensors.
        opaque: it stays as it is through torch's decompositions; else it is one that can be spelled out.
    """
    assert call.library is not None
    single = isinstance(result, torch.Tensor)
    arguments = ", ".join(f"{kind_of(value)} a{i}" for i, value in enumerate(values))
    name = f"{_plain_name(call)}_{next(count)}"
    itself = weakref.ref(call)  # torch's tables hold the body, which must not keep the library

    def body(*given: Any) -> Any:
        call = itself()
        assert call is not None
        found = call.spelled(given, None if opaque else result)
        return found[0] if single else found

    call.library.define(f"{name}({arguments}) -> {'Tensor' if single else 'Tensor[]'}")
    call.library.impl(name, body, "CompositeExplicitAutograd" if opaque else "CompositeImplicitAutograd")
    if opaque:
        torch.library.register_fake(f"{NAMESPACE}::{name}", body, lib=call.library)
    operator: torch._ops.OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
    if opaque:
        _defined[str(operator)] = call
    return Operation(call, operator, body)


def arguments_of(
    operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Every argument of a call of ``operator``, its schema's defaults among them."""
    found, named = list(args), dict(kwargs)
    for argument in operator._schema.arguments[len(found) :]:
        value = named.pop(argument.name, argument.default_value if argument.has_default_value() else None)
        if argument.kwarg_only:
            named[argument.name] = value
        else:
            found.append(value)
    return tuple(found), named


def call_of(operator: Any) -> FormCall | None:
    """The call that ``operator``, the target of a node, stands for; None where it is another operator."""
    ours = isinstance(operator, torch._ops.OpOverload) and operator.namespace == NAMESPACE
    return _defined.get(str(operator)) if ours else None


def library() -> torch.library.Library:
    """One for the operators of a lowering."""
    return torch.library.Library(NAMESPACE, "FRAGMENT")


def kind_of(value: Any) -> str:
    """The type, in an operator's schema, of a node's value or of a value."""
    value = value.meta.get("val") if isinstance(value, Node) else value
    if isinstance(value, torch.Tensor):
        return "Tensor"
    if isinstance(value, (torch.SymBool, bool)):
        return "bool"
    return "SymInt" if isinstance(value, (torch.SymInt, int)) else "float"


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in ``value``, a result, in order."""
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _plain_name(call: FormCall) -> str:
    """``norm`` of the target ``mylib::norm.default`` or ``package.module.norm``, in letters that a schema takes."""
    name = call.registration.target.name if call.registration is not None else call.original.__name__
    name = name.removesuffix(".default") if "::" not in name else name.partition("::")[2].partition(".")[0]
    return re.sub(r"\W+", "_", name.rpartition(".")[2])


class _Applied(nn.Module):
    """A function of a module, as the forward of one around it."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.module, self._function = module, function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self.module, *args, **kwargs)


def _many(count: int) -> str:
    return "one tensor" if count == 1 else f"{count} tensors"


def _shape(tensor: torch.Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
