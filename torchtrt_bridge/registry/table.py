"""The registry: what is registered in this process, in a block, or for one call; and a snapshot of it.

A table is a tuple that is replaced, never changed, so whoever holds one is not disturbed by other threads: a
compilation takes a :class:`Snapshot` at its start.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import BackendUnavailable, ConverterClash, InvalidOption, nearest
from .discovery import discover, source_of
from .registration import Call, Converter, Definition, Registration
from .target import Target

ROUTES = ("onnx", "torch_tensorrt", "torch2trt")
FLAVOURS = ("tensorrt", "tensorrt_rtx")
PRECISIONS = ("follow", "low", "fp32")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a compilation knows of converters: registrations in the order in which they are asked."""

    registrations: tuple[Registration, ...] = ()

    def for_operator(self, operator: Any) -> tuple[Registration, ...]:
        """Those for ``operator``, the target of a graph's node."""
        return tuple(r for r in self.registrations if r.target.matches(operator))

    @property
    def of_python(self) -> tuple[Registration, ...]:
        """Those for functions and classes of Python, whose calls a captured graph does not show by itself."""
        return tuple(r for r in self.registrations if r.target.kind != "operator")


class Table:
    """Registrations that hold together: those of the process, of a block, or of none (``register=False``)."""

    def __init__(self) -> None:
        self.registrations: tuple[Registration, ...] = ()
        self._lock = threading.RLock()

    def add(self, new: Registration) -> None:
        """Register ``new``; one that was defined under the same name for the same target gives way.

        Raises:
            ConverterClash: another is there for the same target, with the same priority, routes and flavours.
        """
        with self._lock:
            kept = []
            for old in self.registrations:
                alike = old.target.name == new.target.name and old.priority == new.priority
                if alike and old.origin.same_name(new.origin):
                    continue
                if alike and _overlap(old.routes, new.routes) and _overlap(old.flavours, new.flavours):
                    raise ConverterClash(
                        f"Two converters of {new.target}: {old.origin} and {new.origin}. Give one of them another"
                        " priority=, or take one away with converter.remove()."
                    )
                kept.append(old)
            self.registrations = (*kept, new)

    def replace(self, old: Registration, new: Registration) -> None:
        """``new`` where ``old`` was; nothing where that is gone."""
        with self._lock:
            self.registrations = tuple(new if r is old else r for r in self.registrations)

    def remove(self, gone: Sequence[Registration]) -> None:
        """Take out ``gone``."""
        with self._lock:
            self.registrations = tuple(r for r in self.registrations if r not in gone)


class Registry:
    """``torchtrt_bridge.converter``: registers the converter of a custom layer.

    Example:
        >>> import torch, torchtrt_bridge as ttb
        >>> def double(x): return x + x
        >>> @ttb.converter(double, register=False)
        ... def of_double(x): return 2 * x
        >>> of_double.registration.forms
        ('aten',)
    """

    def __init__(self) -> None:
        self._process = Table()
        self._blocks: contextvars.ContextVar[tuple[Table, ...]] = contextvars.ContextVar("blocks", default=())
        self._discovering = threading.RLock()
        self._discovered = False

    def __call__(
        self,
        target: Any,
        *,
        when: Callable[[Call], bool | str] | None = None,
        routes: Sequence[str] = (),
        priority: int = 0,
        flavours: Sequence[str] = (),
        precision: str = "follow",
        reason: str = "",
        register: bool = True,
    ) -> Converter:
        """A decorator that registers a converter of ``target``.

        Args:
            target: an operator (``"mylib::norm"``, ``torch.ops.mylib.norm``), an ``nn.Module`` or ``autograd.Function``
                class, or a Python function.
            when, routes, priority, flavours, precision, reason: see :class:`Registration`.
            register: False leaves it out of the registry, for ``compile(..., converters=[...])`` and :meth:`scope`.

        Raises:
            InvalidOption: there is no such target, route or flavour; the message has the nearest.
            ConverterClash: when the function is decorated: another converter is there for the same target.
        """
        found = Target.of(target)
        _check("routes", routes, ROUTES)
        _check("flavours", flavours, FLAVOURS)
        _check("precision", (precision,), PRECISIONS)
        if type(priority) is not int:
            raise InvalidOption(f"converter({found.name!r}, priority={priority!r}): give a whole number.")
        if when is not None and not callable(when):
            raise InvalidOption(f"converter({found.name!r}, when={when!r}): give a function of a call.")

        def describe(function: Callable[..., Any]) -> Registration:
            return Registration(
                found,
                Definition.of(function),
                when=when,
                routes=tuple(routes),
                priority=priority,
                flavours=tuple(flavours),
                precision=precision,
                reason=reason,
                source=source_of(function.__module__),
            )

        blocks = self._blocks.get()
        here = blocks[-1] if blocks else self._process
        return Converter(here if register else Table(), describe)

    def list(self) -> tuple[Registration, ...]:
        """Every registration, in the order in which they are asked; last those built in for the ONNX route, which
        stand in after precision is decided, where a call is still as it was captured."""
        from ..converters import registrations

        return (*self._ranked(()), *registrations())

    @contextlib.contextmanager
    def scope(self, *converters: Converter) -> Iterator[None]:
        """Within, ``converters`` are registered, and what is registered goes when the block ends. Other threads do not
        see it; what is registered here goes before what is registered outside."""
        block = Table()
        for registration in _registrations(converters):
            block.add(registration)
        token = self._blocks.set((*self._blocks.get(), block))
        try:
            yield
        finally:
            self._blocks.reset(token)

    def remove(self, converter: Any) -> None:
        """Take a converter out of the registry: a :class:`Converter`, its ATen form, or a target (all of its converters
        that are not built in).

        Raises:
            InvalidOption: it is not registered; the message has the nearest target that is.
        """
        tables = (*self._blocks.get(), self._process)
        known = [r for table in tables for r in table.registrations]
        gone = [r for r in known if r in (getattr(converter, "_registration", None),) or r.aten is converter]
        if not gone and not isinstance(converter, Converter):
            name = Target.of(converter).name
            gone = [r for r in known if r.target.name == name and r.source != "built-in"]
        if not gone:
            name = getattr(converter, "__name__", None) or str(converter)
            raise InvalidOption(
                f"converter.remove({name!r}): it is not registered.{nearest(name, [r.target.name for r in known])}"
            )
        for table in tables:
            table.remove(gone)

    def snapshot(self, converters: Any = None) -> Snapshot:
        """What holds now: ``converters`` of one call, then those of the blocks around it, then the process's.

        Raises:
            InvalidOption: ``converters`` holds something else.
        """
        found = self._ranked(_registrations(converters))
        if any(r.flavours for r in found):
            flavour = _flavour()
            found = tuple(r for r in found if not r.flavours or flavour in r.flavours)
        return Snapshot(found)

    def _ranked(self, first: tuple[Registration, ...]) -> tuple[Registration, ...]:
        """All registrations, in the order in which they are asked: ``first``, then block by block; in each the highest
        priority before others, one overload's before those of all; last of all what is built in."""
        self._discover()
        layers = [first, *(table.registrations for table in reversed(self._blocks.get())), self._process.registrations]
        ranked = [
            ((r.source == "built-in", layer, -r.priority, not r.target.is_overload), r)
            for layer, registrations in enumerate(layers)
            for r in registrations
        ]
        ranked.sort(key=lambda pair: pair[0])
        return tuple(dict.fromkeys(r for _, r in ranked))

    def _discover(self) -> None:
        with self._discovering:
            if not self._discovered:
                self._discovered = True  # before: what is imported may look at the registry
                contextvars.Context().run(discover)  # in no block, so that it stays


def _registrations(converters: Any) -> tuple[Registration, ...]:
    if converters is None:
        return ()
    if isinstance(converters, Converter):
        converters = (converters,)
    for each in converters if isinstance(converters, (list, tuple)) else (converters,):
        if not isinstance(each, Converter):
            raise InvalidOption(
                f"converters={each!r}: give what @torchtrt_bridge.converter(target) made, or several in a list."
            )
    return tuple(each.registration for each in converters)


def _flavour() -> str | None:
    """The TensorRT that is in use here, if any is."""
    from ..trt.targets import installed

    try:
        return installed().name
    except BackendUnavailable:
        return None


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return not one or not other or bool(set(one) & set(other))


def _check(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(given, str):
        raise InvalidOption(f"{option}={given!r}: give a tuple, ({given!r},).")
    for name in given:
        if name not in known:
            raise InvalidOption(
                f"{option}: there is no {name!r}; there is {', '.join(map(repr, known))}.{nearest(str(name), known)}"
            )
