"""Sizes as expressions in named dims: ``"batch"``, ``"8*width"``, ``"(length + 1)//2"``.

They travel in saved files, so they are read through a grammar, never through ``eval``: names, integers, ``+ - * // %
**`` with small exponents, ``Max(...)`` and ``Min(...)``; every step must come to a 64-bit integer. sympy's spellings
``FloorDiv(a, b)``, ``Mod(a, b)``, ``CeilDiv(a, b)`` are taken too: they are what torch prints for shapes.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import NoReturn

_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: a**b if 0 <= b <= 8 else _refuse(f"an exponent of {b}"),
}
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "Max": lambda *values: max(values),
    "Min": lambda *values: min(values),
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "IntTrueDiv": lambda a, b: a // b if a % b == 0 else _refuse(f"{a}/{b}, which is no integer"),
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "ToInt": int,
    "TruncToInt": math.trunc,
    "FloorToInt": math.floor,
    "CeilToInt": math.ceil,
    "Identity": lambda a: a,
}


class BadExpression(ValueError):
    """A text that is no expression of this grammar."""


def evaluate(expression: str | int, values: Mapping[str, int]) -> int:
    """The integer that ``expression`` comes to where its names have ``values``.

    Raises:
        BadExpression: it is not of the grammar, has a name without a value, divides by zero, or leaves 64 bits.
    """
    if isinstance(expression, int):
        return expression
    tree = _parse(expression)
    try:
        return _evaluate(tree, values)
    except (ZeroDivisionError, TypeError) as error:  # TypeError: a function with too few or too many arguments
        _refuse(f"{expression!r} ({error})")


def names(expression: str | int) -> set[str]:
    """The names in ``expression``.

    Raises:
        BadExpression: it is not of the grammar.
    """
    if isinstance(expression, int):
        return set()
    tree = _parse(expression)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}


@functools.lru_cache(maxsize=4096)
def _parse(expression: str) -> ast.expr:
    if len(expression) > 2000:
        _refuse("an expression of more than 2000 characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        _check(tree, 0)
    except BadExpression:
        raise
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        _refuse(repr(expression[:200]))
    return tree


def _check(node: ast.AST, depth: int) -> None:
    if depth > 60:
        _refuse("an expression nested more than 60 deep")
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        children: list[ast.AST] = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        children = [node.operand]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        children = [*node.args, *node.keywords]
        if not children:
            _refuse(f"{node.func.id} of nothing")
    elif isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and type(node.value) is int):
        children = []
    else:
        _refuse(ast.unparse(node))
    for child in children:
        _check(child, depth + 1)


def _evaluate(node: ast.expr, values: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return node.value if node.value < 2**63 else _refuse(f"{node.value}, which exceeds 64 bits")
    if isinstance(node, ast.Name):
        return values[node.id] if node.id in values else _refuse(f"the name {node.id!r}, which has no value here")
    if isinstance(node, ast.UnaryOp):
        return -_evaluate(node.operand, values)
    if isinstance(node, ast.BinOp):
        result = _OPERATORS[type(node.op)](_evaluate(node.left, values), _evaluate(node.right, values))
    else:
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        arguments = [_evaluate(argument, values) for argument in node.args]
        result = _FUNCTIONS[node.func.id](*arguments)
    return result if abs(result) < 2**63 else _refuse(f"{ast.unparse(node)[:80]!r}, which exceeds 64 bits")


def _refuse(what: str) -> NoReturn:
    raise BadExpression(f"not an expression of sizes: {what}")
