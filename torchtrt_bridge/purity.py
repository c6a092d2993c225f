"""Whether calling a model changes it, and putting it back.

torch.export drops Python side effects (``self.n += 1``) without a word, and tracing leaves fake tensors in the caches
that a model keeps in its attributes. Both are found, and undone, by comparing the modules' ``__dict__`` before and
after.
"""

from __future__ import annotations

import collections
from typing import Any

import torch
from torch import nn

_OWN = frozenset(nn.Module().__dict__) | {"_is_hf_initialized", "_forward_pre_hooks", "_forward_hooks"}
_CONTAINERS = (list, dict, set, collections.deque)


class Purity:
    """A snapshot of a model's attributes, buffers and parameters' versions.

    Buffers are copied (so that a write can be undone); parameters, which are large, are only watched.
    """

    def __init__(self, model: nn.Module):
        self._modules = dict(model.named_modules())
        self._attributes = self._look()
        self._first = self._attributes
        self._buffers = [(name, b, b.detach().clone(), _version(b)) for name, b in model.named_buffers()]
        self._tables = [(module, dict(module._buffers)) for module in self._modules.values() if module._buffers]
        self._parameters = [(name, p, _version(p)) for name, p in model.named_parameters()]

    def written(self) -> str:
        """``"buffer 'bn.running_mean'"``: the first tensor of the model's state that was written to, or ``""``."""
        for name, buffer, _, version in self._buffers:
            if _version(buffer) != version:
                return f"buffer {name!r}"
        for module, table in self._tables:
            for name, buffer in table.items():
                if module._buffers.get(name) is not buffer:
                    return f"buffer {name!r} of {type(module).__name__}"
        for name, parameter, version in self._parameters:
            if _version(parameter) != version:
                return f"parameter {name!r}"
        return ""

    def attributes_changed(self) -> str:
        """``"encoder.calls"``: the first attribute that differs from the last look, or ``""``."""
        now = self._look()
        for name, before in self._attributes.items():
            after = now[name]
            for key in {**before, **after}:
                if key not in before or key not in after or not _same(before[key], after[key]):
                    return f"{name}.{key}" if name else key
        return ""

    def look_again(self) -> None:
        """Compare with the attributes as they are now from here on; :meth:`restore` still goes back to the first."""
        self._attributes = self._look()

    def restore(self) -> None:
        """Put attributes and buffers back as they were when this was made."""
        for name, before in self._first.items():
            own = self._modules[name].__dict__
            for key in [k for k in own if k not in _OWN and k not in before]:
                del own[key]
            for key, value in before.items():
                own[key] = _thaw(value)
        for module, table in self._tables:
            module._buffers.clear()
            module._buffers.update(table)
        with torch.no_grad():
            for _, buffer, copy, version in self._buffers:
                if _version(buffer) != version:
                    buffer.copy_(copy)

    def _look(self) -> dict[str, dict[str, Any]]:
        return {
            name: {key: _freeze(value) for key, value in module.__dict__.items() if key not in _OWN}
            for name, module in self._modules.items()
        }


class _Frozen:
    """A container and what it held."""

    def __init__(self, value: Any):
        self.value = value
        self.copy = value.copy()


def _freeze(value: Any) -> Any:
    return _Frozen(value) if isinstance(value, _CONTAINERS) and not isinstance(value, nn.Module) else value


def _thaw(value: Any) -> Any:
    if not isinstance(value, _Frozen):
        return value
    if not _same(value, _freeze(value.value)):
        value.value.clear()
        (value.value.extend if isinstance(value.value, (list, collections.deque)) else value.value.update)(value.copy)
    return value.value


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, _Frozen) and isinstance(after, _Frozen):
        if before.value is not after.value or len(before.copy) != len(after.copy):
            return False
        if isinstance(before.copy, dict):
            return all(k in after.copy and _same(v, after.copy[k]) for k, v in before.copy.items())
        if isinstance(before.copy, set):
            return before.copy == after.copy
        return all(map(_same, before.copy, after.copy))
    if before is after:
        return True
    return type(before) is type(after) and isinstance(before, (bool, int, float, str, bytes)) and before == after


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
