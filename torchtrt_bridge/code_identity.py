"""What a Python function computes, as plain data: its code, and the constants and functions that it reads.

Two functions with the same data do the same. Where that cannot be said, because a function reads something whose data
is not all of it, there is no answer; nothing is guessed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .registry.registration import FORMS, Converter


def identity(function: Any, describe: Callable[[Any], Any], packages: Collection[str]) -> Any:
    """``function`` as JSON-able data.

    Args:
        describe: the data of a constant; raises where it has none.
        packages: the top modules whose versions the caller knows: what is theirs is known by its name.
    """
    return _Describing(describe, frozenset(packages) | sys.stdlib_module_names).function(function)


class _Describing:
    def __init__(self, describe: Callable[[Any], Any], known: frozenset[str]):
        self._describe, self._known = describe, known
        self._met: dict[int, int] = {}

    def function(self, function: Any) -> Any:
        if not isinstance(function, FunctionType):
            return self._describe(function)
        if id(function) in self._met:  # it calls itself
            return ["function", self._met[id(function)]]
        self._met[id(function)] = len(self._met)
        code = function.__code__
        read = {name: function.__globals__[name] for name in sorted(_names(code)) if name in function.__globals__}
        return [
            "function",
            self._code(code),
            self.value(function.__defaults__),
            self.value(function.__kwdefaults__),
            [self.value(cell.cell_contents) for cell in function.__closure__ or ()],
            [[name, self.value(value)] for name, value in read.items()],
        ]

    def value(self, value: Any) -> Any:
        """What a function reads."""
        if isinstance(value, Converter):
            return [self.value(getattr(value.registration, form)) for form in FORMS]
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        named = isinstance(value, ModuleType) or hasattr(value, "__qualname__")  # a class or function, no object of one
        if isinstance(home, str) and named and home.partition(".")[0] in self._known:
            return ["known", home, getattr(value, "__qualname__", "")]
        if isinstance(value, FunctionType):
            return self.function(value)
        return self._describe(value)

    def _code(self, code: CodeType) -> list[Any]:
        constants = [self._code(c) if isinstance(c, CodeType) else self._describe(c) for c in code.co_consts]
        digest = hashlib.sha256(code.co_code).hexdigest()
        return [digest, list(code.co_names), list(code.co_varnames), list(code.co_freevars), constants]


def _names(code: CodeType) -> Iterator[str]:
    """The names that ``code``, and the functions in it, may look up in their globals."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
