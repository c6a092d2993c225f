"""Which precision each layer was asked to have: ``precision={"default": "fp16", "encoder.layer.0": "fp32", ...}``.

A key of the mapping names modules, and its value is the precision of all that they compute, down to their innermost
parts. The innermost module that any key names decides; where several keys name the same module, the most particular
kind of key does: its path, then a path with wildcards, then a regular expression, then its class; among keys of one
kind, the last.

The modules are those that the capture saw (``nn_module_stack``), so that a rule means the same on every route.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from .errors import InvalidOption
from .fx_nodes import Module, modules

DEFAULT = "default"
_KINDS = ("class", "regex", "glob", "path")  # the most particular last


@dataclasses.dataclass(frozen=True)
class Rule:
    """One key of a mapping, and the name of the precision that it asks for.

    Args:
        kind: what the key is: ``"path"``, ``"glob"``, ``"regex"`` or ``"class"``.
        pattern: the path; the path with wildcards (``*`` within one name, ``**`` for any number of names); the regular
            expression, which a whole path must match; or the qualified name of the class.
        precision: ``"fp16"``, ...
        flags: those of the regular expression.
        subclasses: the qualified names of the other classes of the model that are subclasses (see :func:`bind`).
    """

    kind: str
    pattern: str
    precision: str
    flags: int = 0
    subclasses: tuple[str, ...] = ()

    def names(self, module: Module) -> bool:
        """Whether the key names this module itself (not one around it)."""
        path, kind = module
        if self.kind == "path":
            return path == self.pattern
        if self.kind == "glob":
            return _matches(tuple(path.split(".")), tuple(self.pattern.split(".")))
        if self.kind == "regex":
            return re.compile(self.pattern, self.flags).fullmatch(path) is not None
        return kind == self.pattern or kind in self.subclasses

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a manifest."""
        return {**dataclasses.asdict(self), "subclasses": list(self.subclasses)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rule:
        """The rule that :meth:`to_dict` wrote. Raises TypeError or ValueError where it is none."""
        rule = cls(**{**data, "subclasses": tuple(data["subclasses"])})
        texts = (rule.kind, rule.pattern, rule.precision, *rule.subclasses)
        if not all(type(text) is str for text in texts) or type(rule.flags) is not int or rule.kind not in _KINDS:
            raise ValueError(f"{data!r} is no rule")
        if rule.kind == "regex":
            try:
                re.compile(rule.pattern, rule.flags)
            except re.error as error:
                raise ValueError(f"{rule.pattern!r} is no regular expression: {error}") from None
        return rule

    def __str__(self) -> str:
        return f"{self.key}: {self.precision}"

    @property
    def key(self) -> str:
        """The key as a person writes it."""
        if self.kind == "class":
            return self.pattern.rpartition(".")[2]
        return f"re:{self.pattern}" if self.kind == "regex" else self.pattern


def parse_rules(mapping: Mapping[Any, Any], name_of: Callable[[Any], str]) -> tuple[str, tuple[Rule, ...]]:
    """The default's precision (fp32 where the mapping has none) and the rules of ``mapping``, in its order.

    Args:
        name_of: the name of a precision that a value asks for, or an InvalidOption.

    Raises:
        InvalidOption: a key that is no path, pattern or module class; a value that names no precision.
    """
    default, rules = "fp32", []
    for key, value in mapping.items():
        precision = name_of(value)
        if key == DEFAULT:
            default = precision
        else:
            rules.append(Rule(*_key(key), precision=precision, flags=getattr(key, "flags", 0)))
    return default, tuple(rules)


def _key(key: Any) -> tuple[str, str]:
    """The kind of a mapping's key, and its pattern."""
    if isinstance(key, type) and issubclass(key, nn.Module):
        return "class", _class_name(key)
    if isinstance(key, re.Pattern) and isinstance(key.pattern, str):
        return "regex", key.pattern
    if isinstance(key, str) and key:
        return ("glob" if any(c in key for c in "*?[") else "path"), key
    raise InvalidOption(
        f"precision={{{key!r}: ...}}: a key is 'default', a module's path ('encoder.layer.0', 'encoder.layer.*'), a"
        " compiled regular expression, or a subclass of nn.Module."
    )


def _class_name(kind: type) -> str:
    """The name of a class as torch.export writes it down."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the names of a path are those of a pattern, in which ``**`` stands for any number of names."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[skipped:], pattern[1:]) for skipped in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


class Assignment:
    """The name of the precision that each node of a captured graph was asked to have: ``assignment(node)``."""

    def __init__(self, default: str, rules: Sequence[Rule]):
        self._default = default
        # the rule to heed first comes first
        self._rules = sorted(reversed(rules), key=lambda rule: -_KINDS.index(rule.kind))
        self._known: dict[Module, str | None] = {}

    def __call__(self, node: Node) -> str:
        for module in reversed(modules(node)):
            if module not in self._known:
                self._known[module] = next((r.precision for r in self._rules if r.names(module)), None)
            precision = self._known[module]
            if precision is not None:
                return precision
        return self._default


def bind(rules: Sequence[Rule], graph: Graph, model: nn.Module | None) -> tuple[Rule, ...]:
    """``rules``, with what a class means in this model, each seen to name a module of ``graph``.

    Args:
        model: the eager model, where it is there: which classes are subclasses of which.

    Raises:
        InvalidOption: a key names no module, or none that computes anything by itself; with the nearest names.
    """
    seen = dict.fromkeys(module for node in graph.nodes if node.op == "call_function" for module in modules(node))
    parts = dict(model.named_modules()) if model is not None else {}
    bound = tuple(dataclasses.replace(rule, subclasses=_subclasses(rule, seen, parts)) for rule in rules)
    for rule in bound:
        if not any(rule.names(module) for module in seen):
            raise InvalidOption(_unmatched(rule, list(seen), parts))
    return bound


def _subclasses(rule: Rule, seen: Iterable[Module], parts: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """The other classes of the model that derive from the rule's class."""
    if rule.kind != "class":
        return ()
    found = {*rule.subclasses}
    for path, kind in seen:
        bases = type(parts[path]).__mro__ if path in parts else ()
        if kind != rule.pattern and rule.pattern in map(_class_name, bases):
            found.add(kind)
    return tuple(sorted(found))


def _unmatched(rule: Rule, seen: Sequence[Module], parts: Mapping[str, nn.Module]) -> str:
    """What is wrong with a key that names nothing."""
    hidden = [path for path, part in parts.items() if rule.names((path, _class_name(type(part))))]
    start = f"precision={{{rule.key!r}: {rule.precision!r}}}"
    if hidden:
        inside = next((path for path, _ in reversed(list(_around(hidden[0], seen)))), "")
        around = f"what computes for it is in {inside!r}, so name that" if inside else "name the module around it"
        return f"{start}: {hidden[0]!r} is a module of the model, but computes nothing by itself; {around}."
    if rule.kind == "class":
        kinds = list(dict.fromkeys(kind.rpartition(".")[2] for _, kind in seen))
        near = difflib.get_close_matches(rule.key, kinds, n=3, cutoff=0.5) or kinds[:5]
        return f"{start}: the model has no module of this class that computes anything. Nearest: {', '.join(near)}."
    paths = list(dict.fromkeys(path for path, _ in seen if path))
    near = difflib.get_close_matches(rule.pattern, paths, n=3, cutoff=0.3) or paths[:5]
    names = f"Nearest: {', '.join(map(repr, near))}." if near else "The model has no modules; give its 'default'."
    hints = {
        "glob": " '*' stands for a part of one name, '**' for any number of names.",
        "regex": " The expression must match a whole path.",
    }
    return f"{start} matches no module of the model. {names}{hints.get(rule.kind, '')}"


def _around(path: str, seen: Iterable[Module]) -> Iterator[Module]:
    """The modules of ``seen`` that hold ``path``."""
    return (module for module in seen if module[0] and path.startswith(f"{module[0]}."))
