"""Nested tensors as a flat list and back, with torch2trt's schema, which its saved files hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

_FLAT_DTYPES = (torch.float16, torch.float32, torch.bool)


def _is_flat(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in _FLAT_DTYPES


class Flattener:
    """``schema`` is the nest (tuples, lists, dicts in the order of their sorted keys) with an index in place of each
    value that ``condition`` takes, and None in place of all else."""

    def __init__(self, schema: Any, size: int):
        self._schema = schema
        self._size = size

    @staticmethod
    def from_value(value: Any, condition: Callable[[Any], bool] = _is_flat) -> Flattener:
        count = 0

        def describe(item: Any) -> Any:
            nonlocal count
            if condition(item):
                count += 1
                return count - 1
            if isinstance(item, (list, tuple)):
                children = [describe(child) for child in item]
                return tuple(children) if isinstance(item, tuple) else children
            if isinstance(item, Mapping):
                return {key: describe(item[key]) for key in sorted(item)}
            return None

        return Flattener(describe(value), count)

    @staticmethod
    def from_dict(x: Mapping[str, Any]) -> Flattener:
        return Flattener(x["schema"], x["size"])

    def dict(self) -> dict[str, Any]:
        return {"schema": self._schema, "size": self._size}

    @property
    def schema(self) -> Any:
        return self._schema

    @property
    def size(self) -> int:
        return self._size

    def __len__(self) -> int:
        return self._size

    def flatten(self, value: Any) -> list[Any]:
        """The values of a nest that has this one's structure; what lies where the schema says None is left out."""
        result: list[Any] = [None] * self._size

        def walk(schema: Any, item: Any) -> None:
            if isinstance(schema, int):
                result[schema] = item
            elif isinstance(schema, (list, tuple)):
                for child, child_item in zip(schema, item):
                    walk(child, child_item)
            elif isinstance(schema, Mapping):
                for key, child in schema.items():
                    walk(child, item[key])

        walk(self._schema, value)
        return result

    def unflatten(self, flattened: Sequence[Any]) -> Any:
        """The nest that holds ``flattened``."""

        def build(schema: Any) -> Any:
            if isinstance(schema, int):
                return flattened[schema]
            if isinstance(schema, (list, tuple)):
                children = [build(child) for child in schema]
                return tuple(children) if isinstance(schema, tuple) else children
            if isinstance(schema, Mapping):
                return {key: build(child) for key, child in schema.items()}
            return None

        return build(self._schema)
