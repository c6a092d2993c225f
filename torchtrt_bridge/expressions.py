"""Sizes as expressions in named dims: ``"batch"``, ``"8*width"``, ``"(length + 1)//2"``.

They travel in saved files, so they are read through a grammar, never through ``eval``: names, integers, ``+ - * // %
**`` with small exponents, ``Max(...)`` and ``Min(...)``. sympy's spellings ``FloorDiv(a, b)``, ``Mod(a, b)``,
``CeilDiv(a, b)`` are taken too: they are what torch prints for shapes.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: a**b if 0 <= b <= 8 else _refuse(f"an exponent of {b}"),
}
_FUNCTIONS: dict[str, Callable[..., int]] = {
    "Max": max,
    "Min": min,
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
        BadExpression: it is not of the grammar, or has a name without a value.
    """
    return expression if isinstance(expression, int) else _evaluate(_parse(expression), values)


def names(expression: str | int) -> set[str]:
    """The names in ``expression``.

    Raises:
        BadExpression: it is not of the grammar.
    """
    if isinstance(expression, int):
        return set()
    tree = _parse(expression)
    functions = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - functions


@functools.lru_cache(maxsize=4096)
def _parse(expression: str) -> ast.expr:
    if len(expression) > 2000:
        _refuse("an expression of more than 2000 characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        _refuse(repr(expression))
    _check(tree, 0)
    return tree


def _check(node: ast.AST, depth: int) -> None:
    if depth > 60:
        _refuse("an expression nested more than 60 deep")
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        children: list[ast.AST] = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        children = [node.operand]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords:
        children = list(node.args)
    elif isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and type(node.value) is int):
        children = []
    else:
        _refuse(ast.unparse(node))
    for child in children:
        _check(child, depth + 1)


def _evaluate(node: ast.expr, values: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.Name):
        return values[node.id] if node.id in values else _refuse(f"the name {node.id!r}, which has no value here")
    if isinstance(node, ast.UnaryOp):
        return -_evaluate(node.operand, values)
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluate(node.left, values), _evaluate(node.right, values))
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return _FUNCTIONS[node.func.id](*(_evaluate(argument, values) for argument in node.args))


def _refuse(what: str) -> Any:
    raise BadExpression(f"not an expression of sizes: {what}")
