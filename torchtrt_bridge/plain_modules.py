"""An ``nn.Module`` as plain data: its class by name, its attributes, and its tensors by name only.

For a converter's form that is given the module in another process. The tensors' values are arguments of the call.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .structure import Unstorable, describe, rebuild

_OWN = frozenset(vars(nn.Module()))


def module_to_plain(module: nn.Module, path: str = "module") -> dict[str, Any]:
    """``module`` as JSON-able data.

    Raises:
        Unstorable: its class cannot be imported by name, or an attribute is more than plain data.
    """
    kind = type(module)
    if kind.__module__ == "__main__" or _known(kind.__module__, kind.__qualname__) is not kind:
        raise Unstorable(path, module)
    attributes = {name: value for name, value in vars(module).items() if name not in _OWN}
    return {
        "class": [kind.__module__, kind.__qualname__],
        "attributes": describe(attributes, lambda *_: None, path),
        "training": module.training,
        "parameters": {name: tensor is not None for name, tensor in module._parameters.items()},
        "buffers": {name: tensor is not None for name, tensor in module._buffers.items()},
        "modules": {
            name: None if child is None else module_to_plain(child, f"{path}.{name}")
            for name, child in module._modules.items()
        },
    }


def module_from_plain(data: Mapping[str, Any]) -> nn.Module:
    """The module that :func:`module_to_plain` described, with empty tensors. Imports its class: for data of this
    package's own processes, and of nobody else.

    Raises:
        LookupError: the class is not there.
    """
    importlib.import_module(data["class"][0])
    kind = _known(*data["class"])
    if kind is None:
        raise LookupError(f"the class {'.'.join(data['class'])} is not there")
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)  # its own __init__ would want arguments
    module.__dict__.update(rebuild(data["attributes"], lambda payload: payload), training=data["training"])
    for name, there in data["parameters"].items():
        module.register_parameter(name, nn.Parameter(torch.empty(0)) if there else None)
    for name, there in data["buffers"].items():
        module.register_buffer(name, torch.empty(0) if there else None)
    for name, child in data["modules"].items():
        module.add_module(name, None if child is None else module_from_plain(child))
    return module


def _known(module: str, qualname: str) -> Any:
    """The class of that name in a module that was imported; None where there is none."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found
