"""The example inputs of a network written by hand, and the module's arguments that they become."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .dynamic import DynamicShapes
from .errors import InvalidInput
from .signature import Parameter, Signature, TensorSpec
from .structure import Node


@dataclasses.dataclass(frozen=True)
class Given:
    """The example inputs by name, whether ``build`` takes them as keywords, and their dynamic sizes."""

    tensors: Mapping[str, torch.Tensor]
    by_keyword: bool
    dynamic: DynamicShapes

    @classmethod
    def parse(cls, build: Callable[..., Any], inputs: Any, dynamic_shapes: Any, dynamic_batch: Any) -> Given:
        """Raises:
        InvalidInput: what is given is no tensor, or does not fit the function.
        """
        by_keyword = isinstance(inputs, Mapping)
        if isinstance(inputs, torch.Tensor):
            inputs = (inputs,)
        if not isinstance(inputs, (tuple, list, Mapping)) or not inputs:
            raise InvalidInput(f"inputs is {inputs!r}; give a tensor, a tuple of tensors or a dict of tensors by name.")
        if isinstance(inputs, Mapping):
            tensors = {str(name): tensor for name, tensor in inputs.items()}
        else:
            tensors = dict(zip(_names(build, inputs), inputs))
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise InvalidInput(f"The input {name!r} is a {type(tensor).__name__}; only tensors go into a network.")
            if not name.isidentifier():
                raise InvalidInput(f"The input's name {name!r} must be an identifier, as the module's argument is.")
        dynamic = DynamicShapes.parse(dynamic_shapes, dynamic_batch, list(tensors), list(tensors.values()))
        return cls(tensors, by_keyword, dynamic)

    def call(self, function: Callable[..., Any], *first: Any, tensors: Sequence[Any]) -> Any:
        """``function`` called as the module is."""
        if self.by_keyword:
            return function(*first, **dict(zip(self.tensors, tensors)))
        return function(*first, *tensors)

    def interface(self) -> Signature:
        """The module's signature, without results yet."""
        specs = tuple(
            TensorSpec(name, str(t.dtype).removeprefix("torch."), self.dynamic.spec_shape(i, t.shape))
            for i, (name, t) in enumerate(self.tensors.items())
        )
        parameters = tuple(Parameter(spec.name, "POSITIONAL_OR_KEYWORD") for spec in specs)
        arguments: dict[str, Node] = {spec.name: {"leaf": index} for index, spec in enumerate(specs)}
        return Signature(parameters, arguments, specs, (), {"value": None}, self.dynamic.dims)


def _names(build: Callable[..., Any], inputs: Sequence[Any]) -> list[str]:
    """The names of ``build``'s parameters, which the module's arguments get."""
    try:
        signature = inspect.signature(build)
        signature.bind(None, *inputs)
    except ValueError:  # a function without a signature, written in C
        return [f"input_{index}" for index in range(len(inputs))]
    except TypeError as error:
        raise InvalidInput(f"build{signature} is called with ctx and {len(inputs)} tensors: {error}.") from None
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{index}" for index in range(len(inputs) + 1 - len(names))]
        else:
            names.append(parameter.name)
    return names[1 : len(inputs) + 1]
