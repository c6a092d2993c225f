"""A user's function that adds layers to a network: called, its layers named, what it gives back looked at.

Its mistakes are told by the place in the model and with what TensorRT said about its layers: TensorRT itself speaks of
``(Unnamed Layer* 41)``, in its log, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .conversion import ConversionContext
from .log import listening
from .request import HandwrittenFailed

T = TypeVar("T")


class WrongResult(Exception):
    """What a function gave back is not what it must be; the message begins with the result's name."""


def add_layers(
    ctx: ConversionContext,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    read: Callable[[Any], T],
) -> T:
    """``read(function(ctx, *args, **kwargs))``, inside a scope of ``ctx`` that names the place.

    Raises:
        HandwrittenFailed: the function raised, TensorRT refused one of its layers, or ``read`` raised
            :class:`WrongResult`.
    """
    where = f"{ctx.name} (in {ctx.place or 'the top module'})"
    with listening() as messages:
        try:
            return read(function(ctx, *args, **kwargs))
        except WrongResult as error:
            summary = f"{where}: the TensorRT layers are not what they must be: {error}"
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or "no message"
            summary = f"{where} failed to add its TensorRT layers: {type(error).__name__}: {reason}"
            raise HandwrittenFailed(summary, messages=_last(messages.errors)) from error
    raise HandwrittenFailed(summary, messages=_last(messages.errors))


def tensor_of(ctx: ConversionContext, value: Any, what: str) -> Any:
    """``value`` as a tensor of the network's: itself, or the one result of a layer.

    Raises:
        WrongResult: it is something else, or a tensor whose shape TensorRT finds impossible.
    """
    if hasattr(value, "get_output") and value.num_outputs == 1:  # not every layer is an ILayer: IAttention is none
        value = value.get_output(0)
    if not isinstance(value, ctx.trt.ITensor):
        many = f" with {value.num_outputs} results" if hasattr(value, "num_outputs") else ""
        raise WrongResult(f"{what} is a {type(value).__name__}{many}, not a tensor of TensorRT's network")
    try:
        tuple(value.shape)
    except (ValueError, RuntimeError):  # which of them, is a matter of TensorRT's version
        raise WrongResult(f"{what} has no possible shape, for a layer before it has inputs that do not fit") from None
    return value


def _last(errors: Sequence[str]) -> tuple[str, ...]:
    """The last messages; that there is no driver (error 35) is said beside each where there is no GPU."""
    return tuple(text for text in errors if "cudaError 35" not in text)[-3:]
