"""One call of a model as flat tensors, with the structure around its arguments and its result."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .errors import CaptureFailed, InvalidInput
from .structure import Node, Unstorable, describe, rebuild


class FlatCall:
    """One call of the model, as flat tensors and the structure around them."""

    def __init__(self, model: nn.Module, inputs: Any):
        given = as_call(inputs)
        if given is None:
            raise InvalidInput(
                f"inputs is a {type(inputs).__name__}; it must be a tensor, a tuple of positional arguments or a dict"
                " of keyword arguments, as the model would be called with."
            )
        args, kwargs = given
        self.signature = inspect.signature(model.forward)
        try:
            self.bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidInput(
                f"The inputs do not fit {type(model).__name__}.forward{self.signature}: {error}. Give a tuple of"
                " positional arguments or a dict of keyword arguments."
            ) from None
        self.tensors: list[torch.Tensor] = []
        self.names: list[str] = []

        def leaf(path: str, value: Any) -> Node | None:
            if not isinstance(value, torch.Tensor):
                return None
            if value.layout != torch.strided or value.is_quantized:
                raise InvalidInput(f"The input {path!r} has layout {value.layout}; only dense tensors can go in.")
            self.tensors.append(value.detach())
            self.names.append(path)
            return len(self.tensors) - 1  # type: ignore[return-value]

        try:
            self.nodes = {name: describe(value, leaf, name) for name, value in self.bound.arguments.items()}
        except Unstorable as error:
            raise InvalidInput(
                f"The input {error}. Inputs may be tensors and plain data (None, bool, int, float, str) in tuples,"
                " lists, dicts, dataclasses and registered pytrees."
            ) from None
        if not self.tensors:
            raise InvalidInput("None of the inputs is a tensor; an engine needs at least one.")

    def run(self, model: nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        """The model's result for other tensors in the same structure."""
        arguments = {name: rebuild(node, lambda index: tensors[index]) for name, node in self.nodes.items()}
        bound = inspect.BoundArguments(self.signature, arguments)  # type: ignore[arg-type]
        return model(*bound.args, **bound.kwargs)


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Positional and keyword arguments: a tensor, a tuple or list of arguments, or a dict of them by name; None for
    anything else."""
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), {str(name): value for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return None


class FlatResult:
    """The structure of the model's result, and which of its tensors are inputs or parameters themselves."""

    def __init__(self, model: nn.Module, value: Any, inputs: Sequence[torch.Tensor]):
        self._inputs = {id(t): i for i, t in enumerate(inputs)}
        self._state = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self.constants: list[torch.Tensor] = []
        self.tensors: list[torch.Tensor] = []
        self.names: list[str] = []
        self._numbers: dict[int, int] = {}
        self.node = self._describe(value)

    def _describe(self, value: Any) -> Node:
        def leaf(path: str, item: Any) -> Node | None:
            if not isinstance(item, torch.Tensor):
                return None
            if id(item) in self._inputs:
                return {"input": self._inputs[id(item)]}
            if id(item) in self._state:
                self.constants.append(item.detach().cpu().clone())
                return {"constant": len(self.constants) - 1}
            if id(item) not in self._numbers:
                self._numbers[id(item)] = len(self.tensors)
                self.tensors.append(item)
                self.names.append(path or "output")
            return {"output": self._numbers[id(item)]}

        try:
            return describe(value, leaf)
        except Unstorable as error:
            raise CaptureFailed(
                f"The model's result holds something that no engine can return: result.{error}. Results may be tensors"
                " and plain data in tuples, lists, dicts, dataclasses and registered pytrees."
                " (A cache object can often be switched off, as with use_cache=False.)"
            ) from None

    def select(self, value: Any) -> list[torch.Tensor]:
        """The tensors of another result of the same structure, in this one's order."""
        found: dict[int, torch.Tensor] = {}

        def walk(node: Node, other: Any) -> None:
            payload = node.get("leaf")
            if payload is not None:
                if "output" in payload:
                    found[payload["output"]] = other
                return
            for kind in ("list", "tuple", "size"):
                for child, item in zip(node.get(kind, ()), other if kind in node else ()):
                    walk(child, item)
            for key, child in node.get("dict", ()):
                walk(child, other[key])
            if "fields" in node:
                if node["style"] == "pytree":
                    flatten = torch.utils._pytree.SUPPORTED_NODES[type(other)].flatten_fn
                    for (_, child), item in zip(node["fields"], flatten(other)[0]):
                        walk(child, item)
                else:
                    for key, child in node["fields"]:
                        walk(child, other[key] if node["style"] == "mapping" else getattr(other, key))

        walk(self.node, value)
        return [found[i] for i in range(len(self.tensors))]
