"""What a converter is for: an operator, a Python function, an ``autograd.Function`` or an ``nn.Module`` class."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import nn

from ..errors import InvalidOption, nearest

STANDS_FOR = "_torchtrt_bridge_stands_for"
"""The attribute of what stands in a function's place while a model is captured: the function itself."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What is converted.

    Args:
        kind: ``"operator"``, ``"function"``, ``"autograd function"`` or ``"module"``.
        name: ``"mylib::norm"`` (every overload), ``"aten::add.Tensor"`` (one), or the Python name ``"pkg.mod.Norm"``.
        object: the function or class itself; None for an operator.
    """

    kind: str
    name: str
    object: Any = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, target: Any) -> Target:
        """The target that ``target`` names.

        Raises:
            InvalidOption: it is none of the kinds, or an operator that does not exist; the message has the nearest.
        """
        found = cls._of(target)
        for operator in found.overloads():
            written = [a.name for a in operator._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
            if written and (found.is_overload or len(found.overloads()) == 1):
                raise InvalidOption(
                    f"converter({found.name!r}): it writes to its argument {written[0]!r}, and no operator of a graph"
                    " does. Convert the function or module that calls it."
                )
        return found

    @classmethod
    def _of(cls, target: Any) -> Target:
        definition = getattr(target, "_opoverload", target)  # what @torch.library.custom_op returns
        if isinstance(definition, torch._ops.OpOverload):
            packet, overload = str(definition).rsplit(".", 1)
            return cls("operator", f"{packet.replace('.', '::', 1)}.{overload}")
        if isinstance(target, torch._ops.OpOverloadPacket):
            return cls("operator", str(target).replace(".", "::", 1))
        if isinstance(target, str):
            return cls("operator", _existing(target))
        if inspect.isclass(target) and issubclass(target, torch.autograd.Function):
            return cls("autograd function", _qualified(target), target)
        if inspect.isclass(target) and issubclass(target, nn.Module):
            return cls("module", _qualified(target), target)
        if callable(target) and not inspect.isclass(target) and hasattr(target, "__name__"):
            target = getattr(target, STANDS_FOR, target)  # another thread may capture a model now
            return cls("function", _qualified(target), target)
        raise InvalidOption(
            f"converter({target!r}): a target is an operator ('mylib::norm', torch.ops.mylib.norm), an nn.Module or"
            " autograd.Function class, or a Python function."
        )

    def matches(self, operator: Any) -> bool:
        """Whether ``operator``, the target of a graph's node, is this one or one of its overloads."""
        if self.kind != "operator" or not isinstance(operator, torch._ops.OpOverload):
            return False
        packet, overload = str(operator).rsplit(".", 1)
        name = packet.replace(".", "::", 1)
        return self.name in (name, f"{name}.{overload}")

    def overloads(self) -> tuple[torch._ops.OpOverload, ...]:
        """The operator's overloads that this is for; none where it is a function or a class."""
        if self.kind != "operator":
            return ()
        namespace, _, rest = self.name.partition("::")
        operator, _, overload = rest.partition(".")
        packet = getattr(getattr(torch.ops, namespace), operator)
        return tuple(getattr(packet, name) for name in ([overload] if overload else packet.overloads()))

    @property
    def is_overload(self) -> bool:
        """Whether this is one overload of an operator."""
        return self.kind == "operator" and "." in self.name.partition("::")[2]

    def __str__(self) -> str:
        return self.name


def _existing(name: str) -> str:
    """``name``, an operator's, where there is one."""
    namespace, separator, rest = name.partition("::")
    operator, _, overload = rest.partition(".")
    if not separator or not operator:
        raise InvalidOption(
            f"converter({name!r}): operators are named 'namespace::name' or 'namespace::name.overload'."
        )
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    if packet is None:
        known = sorted({op.partition(".")[0] for op in torch._C._dispatch_get_all_op_names()})
        raise InvalidOption(
            f"converter({name!r}): no operator has that name here.{nearest(f'{namespace}::{operator}', known)} An"
            " operator is to be registered (torch.library) before its converter."
        )
    overloads = packet.overloads()
    if overload and overload not in overloads:
        raise InvalidOption(
            f"converter({name!r}): {namespace}::{operator} has no overload {overload!r}; it has"
            f" {', '.join(map(repr, overloads))}.{nearest(overload, overloads)}"
        )
    return name


def _qualified(target: Any) -> str:
    return f"{target.__module__}.{getattr(target, '__qualname__', target.__name__)}"
