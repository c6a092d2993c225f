"""The symbolic sizes of a stored program, checked before sympy sees them.

torch writes a symbolic size as sympy's ``srepr``, ``Mul(Integer(2), Symbol('s77', integer=True))``, and reads it back
with ``sympy.sympify``, which evaluates the text as Python. So what a file holds must first be seen to be such a tree
and nothing else: known functions of numbers and symbols, of bounded size, and no power or shift whose result could
fill the memory.
"""

from __future__ import annotations

import ast
import re
from typing import NoReturn

_FUNCTION_NAMES = """
    Add Mul Pow Max Min Mod Abs floor ceiling FloorDiv ModularIndexing Where PythonMod CleanDiv CeilDiv CeilToInt
    FloorToInt LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator
    TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat Identity OpaqueUnaryFn_sqrt OpaqueUnaryFn_cos
    OpaqueUnaryFn_sin OpaqueUnaryFn_exp OpaqueUnaryFn_log Equality Unequality StrictLessThan LessThan
    StrictGreaterThan GreaterThan And Or Not
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_POWERS = frozenset(("Pow", "PowByNatural", "FloatPow"))
_SHIFTS = frozenset(("LShift", "RShift"))
_ASSUMPTION_NAMES = """
    integer positive negative nonpositive nonnegative zero nonzero even odd real finite infinite rational
    commutative extended_real extended_positive extended_negative extended_nonnegative extended_nonpositive
    extended_nonzero complex hermitian algebraic transcendental irrational imaginary
"""
_ASSUMPTIONS = frozenset(_ASSUMPTION_NAMES.split())
_SYMBOL = re.compile(r"[a-z]{1,10}[0-9]{1,6}")
_FLOAT = re.compile(r"-?[0-9]{1,20}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")
_LONGEST, _DEEPEST, _MOST_ARGUMENTS, _LARGEST_INTEGER, _HIGHEST_POWER = 16000, 60, 100, 2**63, 64


class BadSymbolic(ValueError):
    """A text that is no symbolic size."""


def is_symbol(text: str) -> bool:
    """Whether ``text`` is the name of a symbol, as torch makes them: ``s77``, ``u0``, ``zf1``. Six digits at most:
    torch counts up to the number."""
    return bool(_SYMBOL.fullmatch(text))


def check_symbolic(text: str) -> None:
    """Pass the ``srepr`` of a symbolic size, float or condition.

    Raises:
        BadSymbolic: it is not one, or is longer, deeper or of higher powers than any real one.
    """
    if len(text) > _LONGEST:
        _refuse(f"{len(text)} characters")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        _refuse(repr(text[:80]))
    _check(tree, 0)


def _check(node: ast.AST, depth: int) -> float:
    """Refuse what is not of the grammar; the answer is the highest power that the tree can raise a symbol to."""
    if depth > _DEEPEST:
        _refuse(f"nested more than {_DEEPEST} deep")
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return 1
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        _refuse(_excerpt(node))
    name = node.func.id
    if name in ("Symbol", "Integer", "Rational", "Float"):
        _check_atom(name, node)
        return 1
    if name not in _FUNCTIONS or node.keywords or not 0 < len(node.args) <= _MOST_ARGUMENTS:
        _refuse(_excerpt(node))
    power = max(_check(argument, depth + 1) for argument in node.args)
    if name in _POWERS:
        power *= max(1.0, abs(_literal(node)))
    elif name in _SHIFTS:
        power *= max(1.0, abs(_literal(node)) / 8)
    if power > _HIGHEST_POWER:
        _refuse(f"a power above {_HIGHEST_POWER}, in {_excerpt(node)}")
    return power


def _check_atom(name: str, node: ast.Call) -> None:
    """``Symbol('s0', integer=True)``, ``Integer(-3)``, ``Rational(1, 2)`` or ``Float('0.5', precision=53)``."""
    values = [_number_or_text(argument) for argument in node.args]
    options = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if isinstance(value, int) and abs(value) <= _LARGEST_INTEGER]
    if name == "Symbol":
        known = all(key in _ASSUMPTIONS and type(value) is bool for key, value in options.items())
        known = known and len(values) == len(texts) == 1 and bool(_SYMBOL.fullmatch(texts[0]))
    elif name == "Float":
        known = all(k == "precision" and type(v) is int and 0 < v <= 256 for k, v in options.items())
        known = known and len(values) == len(texts) == 1 and bool(_FLOAT.fullmatch(texts[0]))
    else:
        wanted = 1 if name == "Integer" else 2
        known = not options and len(values) == len(numbers) == wanted and (name == "Integer" or numbers[1] != 0)
    if not known:
        _refuse(_excerpt(node))


def _literal(node: ast.Call) -> float:
    """The second argument of a power or a shift, which must be a plain number."""
    exponent = node.args[1] if len(node.args) == 2 else None
    if isinstance(exponent, ast.Call) and isinstance(exponent.func, ast.Name) and exponent.func.id != "Symbol":
        values = [_number_or_text(argument) for argument in exponent.args]
        if exponent.func.id == "Integer":
            return float(values[0])
        if exponent.func.id == "Rational":
            return float(values[0]) / float(values[1])
        if exponent.func.id == "Float":
            return float(values[0])
    _refuse(f"an exponent that is no number, in {_excerpt(node)}")


def _number_or_text(node: ast.AST) -> int | str:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return sign * node.value
    if isinstance(node, ast.Constant) and type(node.value) is str and sign == 1:
        return node.value
    _refuse(_excerpt(node))


def _excerpt(node: ast.AST) -> str:
    try:
        return repr(ast.unparse(node)[:80])
    except RecursionError:
        return "a very deep expression"


def _refuse(what: str) -> NoReturn:
    raise BadSymbolic(f"no symbolic size: {what}")
