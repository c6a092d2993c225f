"""What a node of a captured graph is: its operator's name, its place in the model, its tensors, numbers and dtypes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node
from torch.utils import _pytree

Module = tuple[str, str]
"""A module by its path in the user's model (``""`` is the model itself) and the qualified name of its class."""

_LATER_CALL = re.compile(r"@\d+")  # a module's second call is captured as ``layer@1``
_NUMBERS = ("number", "Optional[number]", "float", "Optional[float]", "Tensor")  # add.Tensor(x, 1e-12), too


def operator_name(node: Node) -> str:
    """``conv2d`` for ``aten.conv2d.padding``; empty where the target is no operator of a library."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2] if schema is not None else ""


def module_path(node: Node) -> str:
    """The user's name of the module that ``node`` was captured in (``encoder.layer.3``); empty for the model itself."""
    stack = modules(node)
    return stack[-1][0] if stack else ""


def modules(node: Node) -> list[Module]:
    """The modules that ``node`` was captured in: the model itself first, the innermost last."""
    found = []
    for path, kind in (node.meta.get("nn_module_stack") or {}).values():
        path = _LATER_CALL.sub("", path)
        if path == "model" or path.startswith("model."):
            found.append((path.removeprefix("model").removeprefix("."), str(kind)))
    return found


def retyped(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A fake tensor like ``value`` with another dtype. Its sizes are the same symbols; none is added or guarded."""
    if value.dtype == dtype:
        return value
    assert isinstance(value, FakeTensor)
    shapes = value.fake_mode.shape_env
    with value.fake_mode, shapes.suppress_guards() if shapes is not None else contextlib.nullcontext():
        return torch.empty_strided(value.size(), value.stride(), dtype=dtype, device=value.device)


def is_float(value: Any) -> bool:
    """Whether ``value`` is a tensor of numbers to compute with: float8 ones are quantized."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype.itemsize > 1


def tensor_nodes(node: Node) -> list[Node]:
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]


def has_complex(node: Node) -> bool:
    values = [n.meta["val"] for n in tensor_nodes(node)] + _pytree.tree_leaves(node.meta["val"])
    return any(isinstance(v, torch.Tensor) and v.is_complex() for v in values)


def is_plain_float_cast(node: Node) -> bool:
    """Whether ``node``, an ``aten._to_copy``, does nothing but cast a float tensor to another float type."""
    value, kwargs = node.args[0].meta["val"], node.kwargs  # type: ignore[union-attr]
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    moved = device is not None and torch.device(device) != value.device  # type: ignore[arg-type]
    plain = not moved and kwargs.get("memory_format") in (None, torch.preserve_format)
    return plain and value.is_floating_point() and isinstance(dtype, torch.dtype) and dtype.is_floating_point


def dtypes(*arguments: Any) -> list[torch.dtype]:
    return [v for v in _pytree.tree_leaves(arguments) if isinstance(v, torch.dtype)]


def is_transposed(node: Node, name: str) -> bool:
    return name in ("convolution", "_convolution") and bool(node.args[6])


def arguments(node: Node) -> Iterator[tuple[Node, str]]:
    """The tensors that ``node`` reads, with the name of the argument that each belongs to."""
    for schema, value in _named(node):
        for leaf in _pytree.tree_leaves(value):
            if isinstance(leaf, Node) and isinstance(leaf.meta.get("val"), torch.Tensor):
                yield leaf, schema.name


def numbers(node: Node) -> Iterator[float]:
    """The numbers (not sizes, dimensions or flags) among the arguments of ``node``."""
    for schema, value in _named(node):
        if str(schema.type) in _NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value


def map_numbers(node: Node, args: Any, kwargs: Any, change: Callable[[float], float]) -> tuple[Any, Any]:
    """``args`` and ``kwargs`` of ``node`` with ``change`` applied to the numbers among them."""

    def changed(schema: Any, value: Any) -> Any:
        number = str(schema.type) in _NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool)
        return change(value) if number else value

    schemas = node.target._schema.arguments  # type: ignore[union-attr]
    by_name = {schema.name: schema for schema in schemas}
    return (
        tuple(changed(schema, value) for schema, value in zip(schemas, args)),
        {name: changed(by_name[name], value) for name, value in kwargs.items()},
    )


def _named(node: Node) -> Iterator[tuple[Any, Any]]:
    """The arguments of ``node`` that are given, each with its place in the operator's schema."""
    schemas = node.target._schema.arguments  # type: ignore[union-attr]
    yield from zip(schemas, node.args)
    by_name = {schema.name: schema for schema in schemas}
    for name, value in node.kwargs.items():
        yield by_name[name], value


def between(start: Node, end: Node) -> set[Node]:
    """``end`` and the nodes that it is made of, back to ``start``, which is not among them."""
    found, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node is not start and node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found
