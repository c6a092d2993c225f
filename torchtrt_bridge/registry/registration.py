"""A registration, as data; and the object that ``@converter(...)`` leaves in the place of a function."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn

from ..errors import ConverterClash, InvalidOption
from .target import Target

FORMS = ("aten", "tensorrt", "onnx", "plugin")


@dataclasses.dataclass(frozen=True)
class Definition:
    """Where something is written."""

    module: str
    qualname: str
    file: str
    line: int

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Definition:
        """That of ``function``."""
        code = getattr(inspect.unwrap(function), "__code__", None)
        file, line = (code.co_filename, code.co_firstlineno) if code else ("?", 0)
        module = getattr(function, "__module__", None) or "?"
        return cls(module, getattr(function, "__qualname__", type(function).__qualname__), file, line)

    def same_name(self, other: Definition) -> bool:
        """Whether ``other`` is the same definition, made again: a notebook's cell that was run twice."""
        return (self.module, self.qualname) == (other.module, other.qualname)

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname} ({self.file}:{self.line})"


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a target in a captured model, as a ``when=`` predicate sees it.

    Args:
        args, kwargs: what it is called with. Tensors are fake: they have a shape (with symbols for dynamic sizes), a
            dtype and a device, and no values. The dtypes are the model's own, before any precision is written.
        place: the path of the module in the user's model; empty for the model itself.
        module: the instance, where the target is an ``nn.Module`` class; ``args`` are those of its ``forward``.
        names: the arguments by name, for ``call["eps"]``.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: str = ""
    module: nn.Module | None = None
    names: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Any:
        """The argument that the converter calls ``name``."""
        if name not in self.names:
            raise KeyError(f"{name!r}; the arguments are {', '.join(self.names)}")
        return self.names[name]


@dataclasses.dataclass(frozen=True, eq=False)
class Registration:
    """A converter: what it is for, its forms, and when they hold.

    Args:
        target: what it converts.
        origin: where its first form is written.
        aten: the target's meaning in PyTorch's own operators, called with the target's arguments (an ``nn.Module``
            target: the module first).
        tensorrt: called with a context and the same arguments, it adds layers to a TensorRT network.
        onnx: a Python function over onnxscript's operators, called with the same arguments.
        plugin: a quickly deployable plugin of TensorRT's full flavour.
        when: whether a call is taken: True, False, or a sentence that says why not. Calls that it rejects keep their
            own lowering.
        routes: the routes that it serves; empty: all.
        priority: the highest that takes a call serves it.
        flavours: the flavours of TensorRT (``"tensorrt"``, ``"tensorrt_rtx"``) that it serves; empty: all.
        precision: of an opaque call's float inputs in a model of 16 bits: ``"follow"`` (in 16 bits as soon as one of
            them is), ``"low"`` or ``"fp32"``. (An ATen form's operators have the precision that such operators have.)
        reason: why it exists.
        source: ``"user"``, ``"built-in"``, or the distribution that an entry point brought it from.
    """

    target: Target
    origin: Definition
    aten: Callable[..., Any] | None = None
    tensorrt: Callable[..., Any] | None = None
    onnx: Callable[..., Any] | None = None
    plugin: Callable[..., Any] | None = None
    when: Callable[[Call], bool | str] | None = None
    routes: tuple[str, ...] = ()
    priority: int = 0
    flavours: tuple[str, ...] = ()
    precision: str = "follow"
    reason: str = ""
    source: str = "user"

    @property
    def forms(self) -> tuple[str, ...]:
        """The names of the forms that it has."""
        return tuple(name for name in FORMS if getattr(self, name) is not None)

    def serves(self, route: str | None) -> bool:
        """Whether ``route`` is one of its routes; None: whether all are."""
        return not self.routes or route in self.routes

    def __repr__(self) -> str:
        where = f", routes={'+'.join(self.routes)}" if self.routes else ""
        return f"<converter of {self.target}: {'+'.join(self.forms)}{where}, {self.source}, {self.origin}>"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What became of one call of a converter's target: taken by ``registration``, or not, where ``rejected`` says why.
    ``place`` is the path of the user's module, as far as it is known."""

    registration: Registration
    place: str = ""
    rejected: str = ""


class Layer(Protocol):
    """Where a converter is registered (see :mod:`.table`)."""

    def add(self, registration: Registration) -> None: ...

    def replace(self, old: Registration, new: Registration) -> None: ...


class Converter:
    """What ``@converter(...)`` makes: its first call takes the ATen form, later ones are calls of that form.

    ``.tensorrt``, ``.onnx`` and ``.plugin`` are decorators that add a form, and return the function as it is. The
    registration holds from the first form on.
    """

    def __init__(self, layer: Layer, describe: Callable[[Callable[..., Any]], Registration]):
        self._layer, self._describe = layer, describe
        self._registration: Registration | None = None

    @property
    def registration(self) -> Registration:
        """The registration as it is now.

        Raises:
            InvalidOption: there is no form yet.
        """
        if self._registration is None:
            raise InvalidOption("This converter has no form yet: decorate a function with it.")
        return self._registration

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._registration is not None and self._registration.aten is not None:
            return self._registration.aten(*args, **kwargs)
        if len(args) == 1 and not kwargs and callable(args[0]):
            self._add("aten", args[0])
            return self
        raise TypeError(f"{self!r} has no ATen form to call; @converter(target) takes the function that it decorates")

    def tensorrt(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Add the TensorRT form: ``function(ctx, *arguments)``."""
        return self._add("tensorrt", function)

    def onnx(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Add the ONNX form: ``function(*arguments)`` over onnxscript's operators."""
        return self._add("onnx", function)

    def plugin(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Add the plugin form, for TensorRT's full flavour."""
        return self._add("plugin", function)

    def _add(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(function):
            raise InvalidOption(f"@converter(...).{name} decorates a function, and was given {function!r}.")
        plain: Any = function.registration.aten if isinstance(function, Converter) else function
        form: dict[str, Any] = {name: plain}
        old = self._registration
        if old is None:
            self._registration = dataclasses.replace(self._describe(plain), **form)
            self._layer.add(self._registration)
            return function
        before = getattr(old, name)
        if before is not None and not Definition.of(before).same_name(Definition.of(plain)):
            raise ConverterClash(
                f"The converter of {old.target} has two {name} forms: {Definition.of(before)} and"
                f" {Definition.of(plain)}."
            )
        self._registration = dataclasses.replace(old, **form)
        self._layer.replace(old, self._registration)
        return function

    def __repr__(self) -> str:
        return "<converter without a form>" if self._registration is None else repr(self._registration)
