"""Converters of the user's own for the torch2trt route, beside those that the installed package brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class UserConverter:
    """``convert(ctx)`` makes TensorRT layers for a call of ``method``; one that is not ``is_real`` lets converters
    inside the call work too."""

    method: str | Callable[..., Any]
    convert: Callable[[Any], None]
    is_real: bool
    imports: tuple[str, ...]


CONVERTERS: dict[Any, UserConverter] = {}
"""By method, as it was named; a second one for a method replaces the first."""


def register(
    method: str | Callable[..., Any], convert: Callable[[Any], None], is_real: bool, imports: tuple[str, ...]
) -> None:
    CONVERTERS[method] = UserConverter(method, convert, is_real, imports)
