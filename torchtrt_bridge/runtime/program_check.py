"""A stored program's JSON, checked field by field before torch reads it.

torch's deserializer trusts its input. It looks operators up by walking attributes from ``torch`` (``torch.os.system``
would do, and ``torch.ops.aten.save``, which writes files), evaluates symbolic sizes and guards as Python, and writes
the names of nodes and buffers into the source of a function that it then executes. So nothing goes to it as it came:
this module builds a new document that holds only the fields of torch's own schema, each of the schema's type, and each
text of the one kind that its place allows. What has no place in a saved file, stack traces with their file names above
all, is left out; what could run code is refused.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import keyword
import math
import operator
import re
import types
import typing
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from .symbolic import BadSymbolic, check_symbolic, is_symbol

_DEEPEST = 120  # levels of the schema; a subgraph of torch.cond takes nine
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,511}")
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)")
_ATTRIBUTE = re.compile(r"(?!__)[\w@+:/ -]{1,200}")
_MODULE_STACK = re.compile(r"[\w@+:/ .<>\[\]'-]{0,300},[\w@+:/ .-]{0,300},[\w.<>\[\], -]{0,300}")
_HIGHER_ORDER = frozenset(("cond", "while_loop"))
_DEVICES = frozenset(("cpu", "cuda", "meta"))
_DIALECTS = frozenset(("", "ATEN", "TRAINING"))

# Namespaces of torch's own operators that do more than compute: files, networks, streams, other processes' memory.
_NO_NAMESPACES = """
    _c10d_functional _c10d_functional_autograd c10d c10d_functional cuda debug_mode_ops debugprims fsdp inductor
    inductor_prims mempool prim profiler rpc static_runtime streams symm_mem
"""
_REFUSED_NAMESPACES = frozenset(_NO_NAMESPACES.split())
_REFUSED_OPERATORS = frozenset(("aten::from_file", "aten::_print", "aten::record_stream"))


# Python's and torch's functions of sizes, under the names that torch writes: "_operator.mul", "torch.sym_max".
_SIZE_OPERATORS = frozenset(
    f"{function.__module__}.{function.__name__}"
    for function in (
        *(operator.eq, operator.ne, operator.le, operator.ge, operator.lt, operator.gt, operator.and_, operator.or_),
        *(operator.neg, operator.pos, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
        *(operator.mod, operator.pow, operator.lshift, operator.rshift),
        *(getattr(torch, name) for name in dir(torch) if re.fullmatch(r"_?sym_[a-z0-9]+", name)),
        *(math.trunc, math.floor, math.ceil),
    )
)


class Refused(ValueError):
    """A document that is no stored program, or one that could do harm."""


class MissingOperators(LookupError):
    """The program is well formed, but calls operators that this process does not have: ``names``."""

    def __init__(self, names: list[str]):
        self.names = names
        super().__init__(", ".join(names))


def checked(document: Any, schema: type) -> dict[str, Any]:
    """A copy of ``document`` with only what a stored program may hold; ``schema`` is torch's class for the whole of it.

    The tree of arguments and results is left out (``module_call_graph`` is empty): the caller has its own.

    Raises:
        Refused: something in it is not what its place allows; the message says where.
        MissingOperators: all is well, but for operators that are not registered in this process.
    """
    check = _Check()
    try:
        result = check.value(schema, document, "program", 0)
    except RecursionError:
        _refuse("program", "nested too deep")
    if check.missing:
        raise MissingOperators(sorted(check.missing))
    return result


class _Check:
    def __init__(self) -> None:
        self.missing: set[str] = set()
        self.registered = frozenset(torch._C._dispatch_get_all_op_names())

    def value(self, hint: Any, value: Any, where: str, depth: int) -> Any:
        """``value`` as the schema's type ``hint`` wants it."""
        if depth > _DEEPEST:
            _refuse(where, "nested too deep")
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            inner = next(a for a in arguments if a is not type(None))
            return None if value is None else self.value(inner, value, where, depth)
        if origin is list:
            items = _instance(value, list, where)
            return [self.value(arguments[0], item, f"{where}[{i}]", depth + 1) for i, item in enumerate(items)]
        if origin is dict:
            items = _instance(value, dict, where)
            return {
                _identifier(key, where): self.value(arguments[1], item, f"{where}.{key}", depth + 1)
                for key, item in items.items()
            }
        if dataclasses.is_dataclass(hint):
            return self.fields(hint, _instance(value, dict, where), where, depth)
        if hint is str:
            return _identifier(value, where)
        return _plain(hint, value, where)

    def fields(self, cls: Any, value: dict[str, Any], where: str, depth: int) -> dict[str, Any]:
        """The fields of one of the schema's dataclasses; a union has exactly one."""
        hints, required = _fields(cls)
        if hasattr(cls, "create"):
            if len(value) != 1 or next(iter(value)) not in hints:
                _refuse(where, f"one of {', '.join(hints)} is needed")
        elif not required <= set(value):
            _refuse(where, f"{', '.join(sorted(required - set(value)))} is missing")
        result = {}
        for name, hint in hints.items():
            if name not in value:
                continue
            rule = _RULES.get((cls.__name__, name))
            place = f"{where}.{name}"
            if rule is None:
                result[name] = self.value(hint, value[name], place, depth + 1)
            else:
                result[name] = rule(self, value[name], place)
        return result

    def operator(self, target: Any, where: str) -> str:
        """The name of an operator that only computes: torch's dispatcher has it, or it works on sizes."""
        if _instance(target, str, where) in _SIZE_OPERATORS:
            return target
        match = _OPERATOR.fullmatch(target)
        if match is None:
            short = target.removeprefix("torch.ops.higher_order.")
            if short not in _HIGHER_ORDER or short == target:
                _refuse(where, f"{target[:200]!r} is no operator that a saved program may call")
            return target
        namespace, name, overload = match.groups()
        if namespace in _REFUSED_NAMESPACES or f"{namespace}::{name}" in _REFUSED_OPERATORS:
            _refuse(where, f"a saved program may not call {target!r}")
        full = f"{namespace}::{name}" + ("" if overload == "default" else f".{overload}")
        if full not in self.registered:
            self.missing.add(full)
        return target


@functools.cache
def _fields(cls: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The type of each field of a dataclass, and the fields without a default."""
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    required = (f.name for f in dataclasses.fields(cls) if (f.default, f.default_factory) == missing)
    return typing.get_type_hints(cls), frozenset(required)


def _instance(value: Any, cls: type, where: str) -> Any:
    if type(value) is not cls:
        _refuse(where, f"{cls.__name__} is needed, not {type(value).__name__}")
    return value


def _plain(hint: Any, value: Any, where: str) -> Any:
    """An integer, float, bool or member of an enumeration."""
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        if type(value) is not int or value not in {member.value for member in hint}:
            _refuse(where, f"no {hint.__name__}")
        return value
    if hint is float and (type(value) in (int, float) or value in ("Infinity", "-Infinity", "NaN")):
        return value
    if hint not in (int, float, bool):
        _refuse(where, f"this torch has a field here that is not known to be safe ({hint})")
    if type(value) is not hint:
        _refuse(where, f"{hint.__name__} is needed, not {type(value).__name__}")
    if hint is int and not -(2**63) <= value < 2**64:
        _refuse(where, "an integer of more than 64 bits")
    return value


def _identifier(value: Any, where: str) -> str:
    """The name of a value or a field; torch writes it into Python source."""
    if not _IDENTIFIER.fullmatch(_instance(value, str, where)) or keyword.iskeyword(value):
        _refuse(where, f"{value[:80]!r} is no name")
    return value


def _text(check: _Check, value: Any, where: str) -> str:
    return _instance(value, str, where)


def _texts(check: _Check, value: Any, where: str) -> list[str]:
    return [_instance(text, str, where) for text in _instance(value, list, where)]


def _argument_name(check: _Check, value: Any, where: str) -> str:
    """The name of an operator's argument: it may be empty, or a word of Python's such as ``from``."""
    if value == "" or (isinstance(value, str) and keyword.iskeyword(value)):
        return value
    return _identifier(value, where)


def _attribute_path(check: _Check, value: Any, where: str) -> str:
    """The path of a parameter or buffer, ``encoder.layer.0.weight``; torch quotes it in Python source as it is."""
    if not all(_ATTRIBUTE.fullmatch(part) for part in _instance(value, str, where).split(".")):
        _refuse(where, f"{value[:80]!r} is no name of a parameter or buffer")
    return value


def _symbolic(check: _Check, value: Any, where: str) -> str:
    try:
        check_symbolic(_instance(value, str, where))
    except BadSymbolic as error:
        _refuse(where, str(error))
    return value


def _ranges(check: _Check, value: Any, where: str) -> dict[str, Any]:
    """``{"s77": {"min_val": 2, "max_val": None}}``. Ranges of expressions (``2*s77``) follow from these and are left
    out: a program that was restored with them could not be decomposed again."""
    result = {}
    for symbol, limits in _instance(value, dict, where).items():
        if not is_symbol(symbol):
            continue
        if set(_instance(limits, dict, where)) != {"min_val", "max_val"}:
            _refuse(where, "a range has min_val and max_val")
        result[symbol] = {key: None if v is None else _plain(int, v, where) for key, v in limits.items()}
    return result


def _metadata(check: _Check, value: Any, where: str) -> dict[str, str]:
    """Only the path of the module that made a node: the rest names files, or functions that torch would look up."""
    stack = _instance(value, dict, where).get("nn_module_stack")
    if isinstance(stack, str) and all(_MODULE_STACK.fullmatch(entry) for entry in stack.split(";")):
        return {"nn_module_stack": stack}
    return {}


def _device(check: _Check, value: Any, where: str) -> str:
    if _instance(value, str, where) not in _DEVICES:
        _refuse(where, f"the device {value[:80]!r}, where one of {', '.join(sorted(_DEVICES))} is needed")
    return value


def _dialects(check: _Check, value: Any, where: str) -> list[str]:
    if not set(_texts(check, value, where)) <= _DIALECTS:
        _refuse(where, f"the dialect of {value!r} is not known")
    return value


def _none(check: _Check, value: Any, where: str) -> dict[str, Any]:
    if value != {}:
        _refuse(where, "a saved program holds no objects but tensors")
    return {}


def _no_object(check: _Check, value: Any, where: str) -> NoReturn:
    _refuse(where, "a saved program holds no objects but tensors, numbers and texts")


def _no_effect(check: _Check, value: Any, where: str) -> NoReturn:
    _refuse(where, "a saved program writes to no input, buffer or parameter, and computes no gradient")


def _always(make: Callable[[], Any]) -> Callable[[_Check, Any, str], Any]:
    """The rule of a field that is replaced, whatever it holds."""
    return lambda check, value, where: make()


_RULES: dict[tuple[str, str], Callable[[_Check, Any, str], Any]] = {
    ("ExportedProgram", "opset_version"): _always(dict),
    ("ExportedProgram", "range_constraints"): _ranges,
    ("ExportedProgram", "verifiers"): _dialects,
    ("ExportedProgram", "torch_version"): _text,
    ("ExportedProgram", "guards_code"): _always(list),
    ("GraphModule", "module_call_graph"): _always(list),
    ("GraphModule", "metadata"): _always(dict),
    ("GraphModule", "treespec_namedtuple_fields"): _always(dict),
    ("Graph", "custom_obj_values"): _none,
    ("Node", "target"): _Check.operator,
    ("Node", "metadata"): _metadata,
    ("NamedArgument", "name"): _argument_name,
    ("Argument", "as_operator"): _Check.operator,
    ("Argument", "as_string"): _text,
    ("Argument", "as_strings"): _texts,
    ("Argument", "as_custom_obj"): _no_object,
    ("Argument", "as_string_to_argument"): _no_object,
    ("ConstantValue", "as_string"): _text,
    ("Device", "type"): _device,
    ("SymExpr", "expr_str"): _symbolic,
    ("InputToConstantInputSpec", "name"): _argument_name,
    ("InputToParameterSpec", "parameter_name"): _attribute_path,
    ("InputToBufferSpec", "buffer_name"): _attribute_path,
    ("InputToTensorConstantSpec", "tensor_constant_name"): _attribute_path,
    ("InputSpec", "custom_obj"): _no_object,
    ("InputSpec", "token"): _no_object,
    ("OutputSpec", "loss_output"): _no_effect,
    ("OutputSpec", "buffer_mutation"): _no_effect,
    ("OutputSpec", "parameter_mutation"): _no_effect,
    ("OutputSpec", "gradient_to_parameter"): _no_effect,
    ("OutputSpec", "gradient_to_user_input"): _no_effect,
    ("OutputSpec", "user_input_mutation"): _no_effect,
    ("OutputSpec", "token"): _no_effect,
}


def _refuse(where: str, what: str) -> NoReturn:
    raise Refused(f"{where}: {what}")
