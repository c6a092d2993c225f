"""Calls that are no ordinary calls: torch.fx and torch.jit tracing, torch.export, torch.func, tensor subclasses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch.utils import _pytree

from ..errors import InvalidInput, NotTraceable


def proxy_among(arguments: Any) -> Any:
    """The first of torch.fx's proxies in a call's arguments, or None."""
    fx: Any = sys.modules.get("torch.fx")
    if fx is None:
        return None
    return next((v for v in _pytree.tree_leaves(arguments) if isinstance(v, fx.Proxy)), None)


def as_leaf(proxy: Any, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """One node for the call of ``module``, in the graph that torch.fx is tracing: a leaf, as torch's own layers are."""
    tracer = proxy.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, dict(kwargs))


def plain(tensors: Sequence[Any]) -> list[Any]:
    """``tensors`` with what subclasses hold in place of the subclasses; what is no tensor is left to the check.

    Raises:
        NotTraceable: a tensor without data: a tracer is at work.
        InvalidInput: a subclass that holds no plain tensor.
    """
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    found = []
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and type(tensor) is not torch.Tensor:
            kind = type(tensor).__name__
            if kind in ("FakeTensor", "FunctionalTensor"):
                refuse(f"torch.export or make_fx (an input is a {kind})")
            if is_traceable_wrapper_subclass(tensor):
                raise InvalidInput(f"An input is a {kind}; an engine takes plain tensors. Convert it first.")
            if not isinstance(tensor, torch.nn.Parameter):
                tensor = tensor.as_subclass(torch.Tensor)
        found.append(tensor)
    return found


def explain(tensors: Sequence[Any]) -> None:
    """Raise NotTraceable if the inputs are those of torch.func (vmap, grad, jvp), which have no memory of their own."""
    functorch: Any = getattr(torch._C, "_functorch", None)
    wrapped = getattr(functorch, "is_functorch_wrapped_tensor", None)
    if wrapped is not None and any(isinstance(t, torch.Tensor) and wrapped(t) for t in tensors):
        refuse("torch.func (vmap, grad, jvp)", " An engine runs whole batches: call it outside of the transform.")


def check_modes() -> None:
    """Raise NotTraceable where a dispatch mode is at work that would take the results for constants."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    for mode in _get_current_dispatch_mode_stack():
        if type(mode).__name__ in ("ProxyTorchDispatchMode", "FakeTensorMode", "FunctionalTensorMode"):
            refuse(f"torch.export or make_fx ({type(mode).__name__})")


def refuse(what: str, remedy: str = "") -> NoReturn:
    raise NotTraceable(
        f"A compiled module is an engine, and {what} cannot see into it.{remedy or ' Trace the original model.'}"
    )


def outside_dynamo(function: Callable[[Any], Any], argument: Any) -> Any:
    """``function(argument)``, which torch.compile, if it is at work around it, leaves as it is."""
    if _active_dynamo() is None:
        return function(argument)
    return torch.compiler.disable(function)(argument)


def _dynamo_if_imported() -> Any:
    return sys.modules.get("torch._dynamo")


_active_dynamo: Callable[[], Any] = getattr(
    getattr(torch._C._dynamo, "eval_frame", None), "get_eval_frame_callback", _dynamo_if_imported
)


def keep_dynamo_out() -> None:
    """Tell torch.compile, if it is there, to leave this package's code as it is."""
    dynamo: Any = sys.modules.get("torch._dynamo.trace_rules")
    if dynamo is not None and not dynamo_knows:
        dynamo_knows.append(True)
        dynamo.add(__name__.partition(".")[0])


dynamo_knows: list[bool] = []
