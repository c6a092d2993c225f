"""Converters that a user wrote for torch2trt.

torchtrt_bridge converts the operators that a function is made of, so it needs no converter for it. One that is
registered here is used by the route ``torch2trt``, where that package is installed, which ``torch2trt()`` then takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...backends.torch2trt_converters import CONVERTERS, register

__all__ = ["CONVERTERS", "HELPERS", "IntWrapper", "SizeWrapper", "get_arg", "tensorrt_converter"]


class IntWrapper(int):
    """The class of sizes while torch2trt traces; while torch.export does, sizes are ``torch.SymInt``."""


class SizeWrapper(tuple):  # type: ignore[type-arg]
    """The class of shapes while torch2trt traces; while torch.export does, shapes are ``torch.Size``."""


def tensorrt_converter(
    method: str | Callable[..., Any], is_real: bool = True, enabled: bool = True, imports: Sequence[str] = ()
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """A decorator: the function makes TensorRT layers for a call of ``method`` (``"torch.nn.functional.relu"``, or the
    function itself). ``imports`` names modules to import first."""

    def decorate(converter: Callable[[Any], None]) -> Callable[[Any], None]:
        if enabled:
            register(method, converter, is_real, tuple(imports))
        return converter

    return decorate


def get_arg(ctx: Any, name: str, pos: int, default: Any) -> Any:
    """The argument of the call that a converter is to convert, by name or position."""
    if name in ctx.method_kwargs:
        return ctx.method_kwargs[name]
    return ctx.method_args[pos] if len(ctx.method_args) > pos else default


def torch_dim_resolve_negative(dim: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """``dim`` as a tuple of axes counted from the front."""
    dims = dim if isinstance(dim, tuple) else (dim,)
    return tuple(d + ndim if d < 0 else d for d in dims)


def torch_dim_to_trt_axes(dim: int | tuple[int, ...]) -> int:
    """Axes, counted from the front, as TensorRT's bit mask."""
    return sum(1 << d for d in set(dim if isinstance(dim, tuple) else (dim,)))


def of_the_library(name: str) -> Any:
    """``trt``, the TensorRT module in use; or what only the installed torch2trt has, for a converter's own use.

    Raises:
        AttributeError: neither has it.
    """
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "trt":
        from ...backends.torch2trt_tensorrt import stand_in

        return stand_in()
    if name in HELPERS:
        return _helper(name)
    from ...backends.torch2trt_library import Library
    from ...errors import BackendUnavailable

    try:
        with Library.open() as library:
            return getattr(library.module, name)
    except (BackendUnavailable, AttributeError) as error:
        raise AttributeError(f"torchtrt_bridge.compat.torch2trt has no {name!r}: {error}") from None


#: What converters call while torch2trt traces, so always with that package present.
HELPERS = (
    "add_missing_trt_tensors",
    "add_trt_constant",
    "broadcast_trt_tensors",
    "check_torch_dtype",
    "make_int_wrapper",
    "make_size_wrapper",
    "set_layer_precision",
    "trt_",
    "use_shape_wrapping",
    "wrap_ints",
)


def _helper(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        from ...backends.torch2trt_library import Library

        with Library.open() as library:
            return getattr(library.module, name)(*args, **kwargs)

    call.__name__ = name
    return call
