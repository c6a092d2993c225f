"""``fast.forward`` and ``inspect.signature(fast)`` with the signature of the model that was compiled.

Trainers read it: ``transformers`` drops the columns of a dataset that ``model.forward`` does not name.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

from ..signature import Signature
from .tracing import dynamo_knows, keep_dynamo_out

# A later torch.compile of a surrounding model stops at the engine, and goes on after it.
_NOT_FOR_DYNAMO = {
    "_torchdynamo_disable": True,
    "_torchdynamo_disable_msg": "a compiled module (torchtrt_bridge) runs an engine, which has no graph",
}


class OwnSignature:
    """Decorates ``forward``: a method whose function is the instance's own, ``_forward``, made by
    :meth:`for_signature`. It holds no reference to the instance, so that an engine's memory returns at once."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.__doc__ = function.__doc__
        vars(function).update(_NOT_FOR_DYNAMO)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self.function
        if not dynamo_knows:  # it may have been imported since the module was made
            keep_dynamo_out()
        return types.MethodType(instance._forward, instance)

    vars(__get__).update(_NOT_FOR_DYNAMO)

    def for_signature(self, signature: Signature) -> types.FunctionType:
        """The same function with the signature of the model's ``forward``."""
        code: Any = self.function
        copied = types.FunctionType(code.__code__, code.__globals__, "forward", code.__defaults__, code.__closure__)
        copied.__doc__, copied.__qualname__, copied.__module__ = code.__doc__, code.__qualname__, code.__module__
        copied.__kwdefaults__ = code.__kwdefaults__
        original = signature.python_signature()
        self_ = inspect.Parameter(_unused("self", original), inspect.Parameter.POSITIONAL_ONLY)
        whole = original.replace(parameters=[self_, *original.parameters.values()])
        vars(copied).update(_NOT_FOR_DYNAMO, __signature__=whole)
        return copied


class InstanceSignature:
    """``__signature__`` of instances; a class has its constructor's, which :func:`inspect.signature` finds itself."""

    def __get__(self, instance: Any, owner: type | None = None) -> inspect.Signature:
        if instance is None or instance._artifact is None:
            raise AttributeError("__signature__")
        return instance._artifact.signature.python_signature()


def _unused(name: str, signature: inspect.Signature) -> str:
    while name in signature.parameters:
        name = f"{name}_"
    return name
