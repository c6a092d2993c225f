"""The stage ``lower``: the converters' ATen forms go into a captured program, so that every later step sees plain
operators; and beside it stays the same program with each call that has another form as one opaque operator.

Which converter takes a call is decided call by call. An operator is made for each call that one takes; those to be
spelled out are such that torch's own decomposition runs their bodies, so a form may write in place, make constants and
ask for sizes like any model's code.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from . import forms
from .capture import CapturedModel
from .errors import BridgeError, ConverterFailed
from .export_lock import export_lock
from .forms import FormCall, Slot, arguments_of, call_of
from .fx_nodes import module_path
from .program_graph import rebuild
from .registry import Conversion, Registration, Snapshot
from .registry.choice import accepting

_MOST_ROUNDS = 16


def lower(captured: CapturedModel, snapshot: Snapshot) -> CapturedModel:
    """``captured`` with the ATen forms of ``snapshot`` in its program; itself where no converter takes a call.

    ``formed`` and ``calls`` of the result are there where a call has a TensorRT, ONNX or plugin form; ``routes`` where
    registrations are limited to some routes, for each of which it has a captured model of its own.

    Raises:
        ConverterFailed: a form raised, or gave other results than what it converts.
    """
    with export_lock, torch.no_grad():
        general = _lowered(captured, snapshot, None)
        limited = {route for r in snapshot.registrations for route in r.routes}
        routes = {route: _lowered(captured, snapshot, route) for route in sorted(limited)}
        if limited:
            routes["hybrid"] = _lowered(captured, snapshot, "hybrid")
        return dataclasses.replace(general, routes=routes) if routes else general


def serving(captured: CapturedModel, takes: Callable[[FormCall], bool]) -> ExportedProgram:
    """The program in which each call that ``takes`` accepts is one opaque operator, of those in ``captured.calls``, and
    all else is plain operators; ``captured.program`` where it accepts none."""
    if captured.formed is None or not any(takes(call) for call in captured.calls.values()):
        return captured.program
    work = _Work(captured.formed, None, Snapshot(), None)
    with export_lock, torch.no_grad():
        work.settle(takes)
    return work.program


def _lowered(captured: CapturedModel, snapshot: Snapshot, route: str | None) -> CapturedModel:
    """``captured`` lowered for one route; where that is None, by the registrations that serve all routes."""
    work = _Work(captured.program, captured.kept, snapshot, route)
    work.settle(_has_form)
    if work.program is captured.program and not work.conversions:
        return captured
    formed = work.program if work.opaque else None
    work.settle(lambda call: False)
    return dataclasses.replace(
        captured,
        program=work.program,
        formed=formed,
        calls=work.opaque,
        kept=None,
        conversions=tuple(work.conversions),
        notes=(*captured.notes, *_notes(work.conversions)),
    )


def _notes(conversions: Sequence[Conversion]) -> list[str]:
    """Whose ATen forms are in the program, for how many calls: for a report."""
    taken = collections.Counter(c.registration for c in conversions if not c.rejected and c.registration.aten)
    return [
        f"{r.target}: {count} {'call' if count == 1 else 'calls'} converted by {r.origin.module}.{r.origin.qualname}"
        for r, count in taken.items()
    ]


def _has_form(call: FormCall) -> bool:
    """Whether some route may have a use for ``call`` as one opaque operator."""
    return call.registration is not None and set(call.registration.forms) != {"aten"}


def _spells_itself(call: FormCall, node: Node) -> bool:
    """Whether ``call`` spelled out is ``node`` as it is: an operator whose converter has no ATen form."""
    return call.original is node.target and (call.registration is None or call.registration.aten is None)


class _Work:
    """A program on its way. ``settle`` it; then ``program`` is the result, and ``opaque`` has the calls that were given
    an opaque operator, by its name."""

    def __init__(self, program: ExportedProgram, kept: Any, snapshot: Snapshot, route: str | None):
        self.program, self.opaque = program, dict[str, FormCall]()
        self.conversions: list[Conversion] = [] if kept is None else list(kept.rejected)
        self._kept, self._snapshot, self._route = kept, snapshot, route
        self._looking_anew = True
        self._inside: dict[str, frozenset[Registration]] = {}  # by node: whose forms made it

    def settle(self, stays_opaque: Callable[[FormCall], bool]) -> None:
        """Rewrite calls until none is left to rewrite: a form may call what another converter is for."""
        for _ in range(_MOST_ROUNDS):
            found = {}
            for node in self.program.graph.nodes:
                call = self._call(node)
                if call is None:
                    continue
                opaque = stays_opaque(call)
                is_done = call_of(node.target) is call if opaque else _spells_itself(call, node)
                if not is_done:
                    found[node.name] = call
            self._looking_anew = False
            if not found:
                return
            self._rewrite(found, stays_opaque)
        names = ", ".join(sorted({str(call) for call in found.values()}))
        raise ConverterFailed(f"The forms of converters call one another without end: {names}.")

    def _call(self, node: Node) -> FormCall | None:
        """The call that ``node`` is, with the converter that takes it; None where none does."""
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return None
        if (opaque := call_of(node.target)) is not None:
            return opaque
        if self._kept is not None and str(node.target) in self._kept.calls:
            call, taking = self._kept.calls[str(node.target)]
            chosen = next((r for r in taking if self._serves(r)), None)
            return dataclasses.replace(call, registration=chosen, place=module_path(node))
        inside = self._inside.get(node.name, frozenset())
        registrations = [r for r in self._snapshot.for_operator(node.target) if r not in inside and self._serves(r)]
        if not registrations:
            return None
        args, kwargs = arguments_of(node.target, node.args, node.kwargs)
        fake_args, fake_kwargs = torch.fx.map_arg((args, kwargs), lambda n: n.meta.get("val"))  # type: ignore[arg-type]
        place = module_path(node)

        def rejected(registration: Registration, reason: str) -> None:
            if self._looking_anew:
                self.conversions.append(Conversion(registration, place, reason))

        taking = accepting(registrations, fake_args, fake_kwargs, place=place, rejected=rejected)
        if not taking:
            return None
        nodes = _nodes(node)
        args, kwargs = torch.fx.map_arg((args, kwargs), lambda n: Slot(nodes.index(n)))  # type: ignore[arg-type,return-value]
        return FormCall(taking[0], node.target, args, kwargs, place)

    def _serves(self, registration: Registration) -> bool:
        return registration.serves(self._route) or self._route == "hybrid"

    def _rewrite(self, found: dict[str, FormCall], stays_opaque: Callable[[FormCall], bool]) -> None:
        """Each call an operator of its own; those that do not stay opaque spelled out."""
        graph = copy.deepcopy(self.program.graph)
        library = forms.library()
        spelled: list[forms.Operation] = []
        for node in [n for n in graph.nodes if n.name in found]:
            opaque = stays_opaque(found[node.name])
            call = dataclasses.replace(found[node.name], library=library)
            operation = self._operation(node, call, opaque)
            if opaque:
                self.opaque[str(operation.operator)] = call
            else:
                spelled.append(operation)
            if call.registration is not None:
                self._inside[node.name] = self._inside.get(node.name, frozenset()) | {call.registration}
                if call_of(node.target) is None:
                    self.conversions.append(Conversion(call.registration, call.place))
        marked = rebuild(self.program, graph, {})
        self.program = self._spelled_out(marked, spelled) if spelled else marked

    def _operation(self, node: Node, call: FormCall, opaque: bool) -> forms.Operation:
        """An operator for ``call``, put in the place of ``node``."""
        result, single = node.meta["val"], False
        if self._is_kept(node):
            single = len(result) == 1
            result = result[0] if single else result
        values = list(node.args) if call_of(node.target) or self._is_kept(node) else _nodes(node)
        operation = forms.define(call, values, result, opaque)
        with node.graph.inserting_before(node):
            new = node.graph.create_node("call_function", operation.operator, tuple(values), {})
        new.meta = {**node.meta, "val": result}
        for user in list(node.users) if single else ():
            user.replace_all_uses_with(new)
            node.graph.erase_node(user)
        node.replace_all_uses_with(new)
        node.graph.erase_node(node)
        new.name = node.name
        return operation

    def _is_kept(self, node: Node) -> bool:
        return self._kept is not None and str(node.target) in self._kept.calls

    def _spelled_out(self, program: ExportedProgram, spelled: Sequence[forms.Operation]) -> ExportedProgram:
        failures: list[tuple[BridgeError, tuple[Any, ...]]] = []

        def watched(body: Callable[..., Any]) -> Callable[..., Any]:
            def run(*values: Any) -> Any:
                try:
                    return body(*values)
                except BridgeError as error:
                    failures.append((error, error.args))  # to which torch adds its own lines on the way out
                    raise

            return run

        try:
            made = program.run_decompositions({each.operator: watched(each.body) for each in spelled})
        except Exception as error:
            if failures:
                failure, arguments = failures[0]
                failure.args = arguments
                raise failure from failure.__cause__  # without the retracing around it
            names = ", ".join(sorted({str(each.call) for each in spelled}))
            raise ConverterFailed(
                f"torch cannot capture what converters made: {type(error).__name__}: {error} (of {names})"
            ) from error
        before, self._inside = self._inside, {}
        for node in made.graph.nodes:
            source = (node.meta.get("from_node") or [None])[-1]
            if source is not None and source.name in before:
                self._inside[node.name] = before[source.name]
        return made


def _nodes(node: Node) -> list[Node]:
    """The nodes among the arguments of ``node``, each once."""
    return list(node.all_input_nodes)
