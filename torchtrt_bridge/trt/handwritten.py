"""A user's function that adds layers to a network: called, its layers named, what it gives back looked at.

Its mistakes are told by the place in the model and with what TensorRT said about its layers: TensorRT itself speaks of
``(Unnamed Layer* 41)``, in its log, and goes on.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Expected:
    """A tensor that a form must give: torch's name of its dtype, and its shape, -1 where a size is dynamic."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Any) -> Expected:
        """As torch's ``tensor``, which may be fake."""
        sizes = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
        return cls(str(tensor.dtype).removeprefix("torch."), sizes)

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def tensors_of(ctx: ConversionContext, expected: Sequence[Expected], value: Any) -> list[Any]:
    """The tensors of a form's result: a tensor, a layer, or a sequence of them.

    Raises:
        WrongResult: another number, dtype or shape than ``expected``.
    """
    many = getattr(value, "num_outputs", 1)
    if many > 1:
        value = [value.get_output(index) for index in range(many)]
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    if len(values) != len(expected):
        raise WrongResult(f"there are {len(values)} results, and there must be {len(expected)}")
    tensors = []
    for index, (each, wanted) in enumerate(zip(values, expected)):
        what = f"result {index}" if len(expected) > 1 else "the result"
        tensor = tensor_of(ctx, each, what)
        made = Expected(ctx.name_of(tensor.dtype), tuple(tensor.shape))
        if made.dtype != wanted.dtype or not _fit(made.shape, wanted.shape):
            raise WrongResult(f"{what} is {made}, and must be {wanted}")
        tensors.append(tensor)
    return tensors


def _fit(made: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(made) == len(wanted) and all(a == b or -1 in (a, b) for a, b in zip(made, wanted))


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
