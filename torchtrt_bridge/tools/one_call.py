"""A sample of a converter's arguments as a model of one call, so that all that holds for models holds for it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from ..errors import InvalidInput
from ..registry.target import Target


class OneCall(nn.Module):
    """Calls what a converter is for, once, with a sample of its arguments.

    The sample's tensors are what ``forward`` takes, as keywords by the names that the target has for them; ``inputs``
    holds them. Its parameters belong to this module, as they would to a layer. All else is as it was given. With
    ``linear``, float32 inputs come through a linear layer that multiplies by 1: a precision of 16 bits reaches the call
    by such a layer before it.

    Args:
        target: what to call.
        sample: a tensor, a tuple of positional arguments, or a dict of keyword arguments. For an ``nn.Module`` class a
            tuple that begins with the instance, which is copied.
        device: where the call is to run.
        linear: see above.

    Raises:
        InvalidInput: the sample is something else, or has no tensor that is no parameter.
    """

    def __init__(self, target: Target, sample: Any, device: torch.device, linear: bool = False):
        super().__init__()
        args, kwargs = _arguments(target, sample)
        self.layer: nn.Module | None = None
        self.linear = nn.Parameter(torch.ones(1, 1, device=device), requires_grad=False) if linear else None
        if target.kind == "module":
            layer, *args = args
            self.layer = copy.deepcopy(layer).to(device)
        self.weights = nn.ParameterDict()
        self.inputs: dict[str, torch.Tensor] = {}
        names = _names(target)

        def stand_in(path: Sequence[Any], leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            name = _name(path, names)
            if isinstance(leaf, nn.Parameter):
                self.weights[name] = nn.Parameter(leaf.detach().to(device), requires_grad=False)
            else:
                self.inputs[name] = leaf.detach().to(device)
            return _Named(name)

        self._arguments = _pytree.tree_map_with_path(stand_in, (list(args), dict(kwargs)))
        self._function = target.object.apply if target.kind == "autograd function" else target.object
        if target.kind == "operator":
            self._function = _operator(target)
        if not self.inputs:
            raise InvalidInput(f"check_converter(): the sample {describe(sample)} has no tensor that is an input.")
        self.forward = self._with_signature()
        self.eval()

    @property
    def is_float32(self) -> bool:
        """Whether a lower precision means anything: there are float32 tensors, and none of 16 bits."""
        dtypes = {tensor.dtype for tensor in (*self.inputs.values(), *self.parameters())}
        return torch.float32 in dtypes and not dtypes & {torch.float16, torch.bfloat16}

    def _with_signature(self) -> Callable[..., Any]:
        """A forward that names the inputs, for dynamic shapes and messages."""

        def forward(**tensors: torch.Tensor) -> Any:
            values = {**self.weights, **{name: self._through_linear(tensor) for name, tensor in tensors.items()}}
            args, kwargs = _pytree.tree_map(
                lambda leaf: values[leaf.name] if isinstance(leaf, _Named) else leaf, self._arguments
            )
            function = self._function if self.layer is None else self.layer
            return function(*args, **kwargs)

        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in self.inputs]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return forward

    def _through_linear(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.linear is None or tensor.dtype != torch.float32:
            return tensor
        return nn.functional.linear(tensor.unsqueeze(-1), self.linear).squeeze(-1)


def describe(sample: Any) -> str:
    """A sample in few words: ``(float32[2, 8], weight float32[8], 1e-05)``."""
    args, kwargs = _split(sample)
    parts = [_described(value) for value in args]
    parts += [f"{name}={_described(value)}" for name, value in kwargs.items()]
    return f"({', '.join(parts)})"


@dataclasses.dataclass(frozen=True)
class _Named:
    """Stands, among the arguments, for the tensor of this name."""

    name: str


def _arguments(target: Target, sample: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if not isinstance(sample, (torch.Tensor, tuple, list, Mapping)):
        raise InvalidInput(
            f"check_converter(): a sample is a tensor, a tuple of arguments or a dict of them, not {sample!r}."
        )
    args, kwargs = _split(sample)
    if target.kind == "module" and not (args and isinstance(args[0], target.object)):
        raise InvalidInput(
            f"check_converter(): a sample for {target} is a tuple of an instance of it and the arguments of its"
            f" forward, as its converter takes them; it was given {describe(sample)}."
        )
    return args, kwargs


def _split(sample: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(sample, Mapping):
        return (), sample
    return (tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)), {}


def _operator(target: Target) -> Any:
    namespace, _, name = target.name.partition("::")
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops, namespace), packet)
    return getattr(found, overload) if overload else found


def _names(target: Target) -> list[str]:
    """The names of the target's positional arguments, as far as it tells them."""
    if target.kind == "operator":
        operator = _operator(target)
        if isinstance(operator, torch._ops.OpOverloadPacket):
            operator = getattr(operator, operator.overloads()[0])
        return [argument.name for argument in operator._schema.arguments]
    function = target.object if target.kind == "function" else target.object.forward
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # not every builtin says
        return []
    has_context = target.kind == "autograd function" and (
        target.object.setup_context is torch.autograd.Function.setup_context
    )
    return names[1:] if target.kind == "module" or has_context else names


def _name(path: Sequence[Any], names: Sequence[str]) -> str:
    """``x``, or ``tensors_1`` for the second in a list."""
    keys: list[Any] = [key.idx if hasattr(key, "idx") else key.key for key in path]
    _, which, *inner = keys  # the first: of the positional arguments, or of the keywords
    top = which if isinstance(which, str) else names[which] if which < len(names) else f"argument{which}"
    top = "input" if top == "self" else top  # which nn.Module's own call has a use for
    return "_".join([top, *map(str, inner)])


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{'weight ' * isinstance(value, nn.Parameter)}{dtype}{list(value.shape)}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_described, value))}]"
    return repr(value)
