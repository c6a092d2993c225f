"""Whether calling a model changes it, and putting it back.

torch.export drops Python side effects (``self.n += 1``) without a word, and tracing leaves fake tensors in the caches
that a model keeps in its attributes. Both are found, and undone, by comparing what the modules hold before and after:
their ``__dict__``, the containers and plain objects in it, and the tensors in those.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

_OWN = frozenset(nn.Module().__dict__) | {"_is_hf_initialized", "_forward_pre_hooks", "_forward_hooks"}
_CONTAINERS = (list, dict, set, collections.deque)
_DEPTH = 5  # of containers and objects within one another; beyond, only identity is compared


class Purity:
    """A snapshot of a model's attributes, buffers and parameters' versions.

    Buffers and tensors in attributes are copied (so that a write can be undone); parameters, which are large, are only
    watched.
    """

    def __init__(self, model: nn.Module):
        self._modules = dict(model.named_modules())
        self._holders = self._first = list(self._look())
        buffers = {id(b): (f"buffer {name!r}", b) for name, b in model.named_buffers()}
        parameters = {id(p): (f"parameter {name!r}", p) for name, p in model.named_parameters()}
        others = {
            id(value): (f"attribute {holder.path_of(key)!r}", value)
            for holder in self._first
            for key, value in holder.items()
            if isinstance(value, torch.Tensor) and id(value) not in parameters
        }
        self._tensors = [(what, t, t.detach().clone(), _version(t)) for what, t in {**others, **buffers}.values()]
        self._parameters = [(what, p, _version(p)) for what, p in parameters.values()]
        self._tables = [(module, dict(module._buffers)) for module in self._modules.values() if module._buffers]

    def written(self) -> str:
        """``"buffer 'bn.running_mean'"``: the first tensor of the model's state that was written to, or ``""``."""
        for what, tensor, _, version in self._tensors:
            if _version(tensor) != version:
                return what
        for module, table in self._tables:
            for name, buffer in table.items():
                if module._buffers.get(name) is not buffer:
                    return f"buffer {name!r} of {type(module).__name__}"
        for what, parameter, version in self._parameters:
            if _version(parameter) != version:
                return what
        return ""

    def attributes_changed(self) -> str:
        """``"encoder.calls"``: the first attribute that differs from the last look, or ``""``."""
        return next((path for holder in self._holders if (path := holder.changed())), "")

    def look_again(self) -> None:
        """Compare with the attributes as they are now from here on; :meth:`restore` still goes back to the first."""
        self._holders = list(self._look())

    def restore(self) -> None:
        """Put attributes and buffers back as they were when this was made."""
        for holder in self._first:
            holder.restore()
        for module, table in self._tables:
            module._buffers.clear()
            module._buffers.update(table)
        with torch.no_grad():
            for _, tensor, copy, version in self._tensors:
                if _version(tensor) != version:
                    tensor.copy_(copy)

    def _look(self) -> Iterator[_Holder]:
        """Every module's attributes, and every container and object that is reached from them."""
        seen = {id(module) for module in self._modules.values()}
        reached: list[tuple[_Holder, int]] = [
            (_Holder(name, module, _OWN, _recomputed(module)), 0) for name, module in self._modules.items()
        ]
        while reached:
            holder, depth = reached.pop(0)
            yield holder
            if depth == _DEPTH:
                continue
            for key, value in holder.items():
                for path, inner in _inside(holder.path_of(key), value):
                    if id(inner) not in seen:
                        seen.add(id(inner))
                        reached.append((_Holder(path, inner), depth + 1))


class _Holder:
    """A module, an object or a container, and what it held."""

    def __init__(
        self, path: str, owner: Any, ignored: frozenset[str] = frozenset(), recomputed: frozenset[str] = frozenset()
    ):
        self._path = path
        self._ignored = ignored
        self._recomputed = recomputed
        self._is_object = not isinstance(owner, _CONTAINERS)
        self._now = owner.__dict__ if self._is_object else owner
        self._then = self._copy()

    def path_of(self, key: Any) -> str:
        if not self._is_object:
            return f"{self._path}[{key!r}]" if isinstance(self._then, (dict, list)) else self._path
        return f"{self._path}.{key}" if self._path else str(key)

    def items(self) -> Iterable[tuple[Any, Any]]:
        return list(self._then.items() if isinstance(self._then, dict) else enumerate(self._then))

    def changed(self) -> str:
        then, now = self._then, self._copy()
        if isinstance(then, dict):
            keys = (key for key in {**then, **now} if key not in self._recomputed)
            different = (k for k in keys if k not in then or k not in now or not _same(then[k], now[k]))
            return next(map(self.path_of, different), "")
        if isinstance(then, set):
            return self._path if then != now else ""
        return self._path if len(then) != len(now) or not all(map(_same, then, now)) else ""

    def restore(self) -> None:
        now = self._now
        if self._is_object:
            for key in [key for key in now if key not in self._ignored and key not in self._then]:
                del now[key]
            now.update(self._then)
        elif self.changed():
            now.clear()
            (now.extend if isinstance(now, (list, collections.deque)) else now.update)(self._then)

    def _copy(self) -> Any:
        if not self._is_object:
            return self._now.copy()
        return {key: value for key, value in self._now.items() if key not in self._ignored}


def _inside(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """``value``, where it can be changed in place; the members of a tuple, which cannot."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _inside(f"{path}[{index}]", item)
    elif isinstance(value, _CONTAINERS) or (
        isinstance(getattr(value, "__dict__", None), dict)
        and not isinstance(value, (type, types.ModuleType, torch.Tensor))
        and (not callable(value) or isinstance(value, nn.Module))
    ):
        yield path, value


def _recomputed(module: nn.Module) -> frozenset[str]:
    """Attributes that a hook of torch's own sets from the parameters before each call: the same value every time."""
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    hooks = module._forward_pre_hooks.values()
    return frozenset(hook.name for hook in hooks if isinstance(hook, (WeightNorm, SpectralNorm)))


def _same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    if type(before) is not type(after):
        return False
    if isinstance(before, tuple):
        return len(before) == len(after) and all(map(_same, before, after))
    return isinstance(before, (bool, int, float, str, bytes)) and before == after


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
