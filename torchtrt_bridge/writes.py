"""A call of a converter must leave its arguments alone: in a graph it is an operator that only gives results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import ArgumentWritten


class NoWrites(TorchDispatchMode):
    """Within, an operator that writes to one of ``arguments``, or to a view of one, raises ArgumentWritten, which
    names ``who`` does so. Writing to other tensors is fine."""

    def __init__(self, arguments: Sequence[Any], who: str):
        super().__init__()
        self._arguments = [value for value in arguments if isinstance(value, torch.Tensor)]
        self._who = who

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            named = {**dict(zip((a.name for a in func._schema.arguments), args)), **kwargs}
            for argument in func._schema.arguments:
                written = named.get(argument.name)
                if argument.alias_info is not None and argument.alias_info.is_write and self._is_one(written):
                    raise ArgumentWritten(
                        f"{self._who} writes to one of its arguments ({func}), which the rest of the model would see"
                        " changed. Let it work on a copy (x = x.clone()), or use the operator without the underscore."
                    )
        return func(*args, **kwargs)

    def _is_one(self, written: Any) -> bool:
        tensors = written if isinstance(written, (list, tuple)) else [written]
        return any(
            torch._C._is_alias_of(tensor, argument)  # type: ignore[attr-defined]
            for tensor in tensors
            if isinstance(tensor, torch.Tensor)
            for argument in self._arguments
        )
