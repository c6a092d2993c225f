"""What a compiled module answers to code that looks for layers and parameters: it is one engine, and has none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import nn

from ..errors import NoLayers

_SAVED = ("engine", "program", "manifest", "runtime_cache", "source", "constant")  # names in the saved form


class OneEngine(nn.Module):
    """An ``nn.Module`` without layers, parameters or buffers, of its own or to come.

    ``_attributes`` holds the plain data that was copied from the original model; it is read and set as attributes.
    """

    _attributes: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        attributes = self.__dict__.get("_attributes", {})
        if name in attributes:
            return attributes[name]
        if name.startswith("_"):  # asked for by the way and often (copy, pickle, IPython): no long story
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise NoLayers(
            f"A compiled module has no {name!r}: the model became one engine, without its layers, parameters and"
            f" methods. Plain data of the model is copied with compile(..., attributes=({name!r}, ...)); for the rest,"
            " use the original model."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (nn.Module, nn.Parameter)):
            _refuse(name)
        if isinstance(value, torch.Tensor) and name in _SAVED:  # torch.func.functional_call with a state dict
            raise NoLayers(
                f"{name!r} cannot be set: the engine is fixed. load_state_dict() takes a saved module, and functional"
                " calls take no parameters."
            )
        if name == "training":
            value = False
        if name in self.__dict__.get("_attributes", ()):
            self._attributes[name] = value
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__.get("_attributes", ()):
            del self._attributes[name]
        else:
            super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._attributes})

    # typed as in nn.Module, whose iterators they replace
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return _Nothing("parameters; its .device and .dtype say what next(model.parameters()) is asked for")

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        return _Nothing("parameters; its .device and .dtype say what next(model.parameters()) is asked for")

    def buffers(self, recurse: bool = True) -> Iterator[Any]:
        return _Nothing("buffers")

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Any]]:
        return _Nothing("buffers")

    def children(self) -> Iterator[nn.Module]:
        return _Nothing("layers")

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        return _Nothing("layers")

    def get_submodule(self, target: str) -> nn.Module:
        return self if target == "" else self.__getattr__(target)

    def get_parameter(self, target: str) -> nn.Parameter:
        return self.__getattr__(target)

    def get_buffer(self, target: str) -> Any:
        return self.__getattr__(target)

    def set_submodule(self, target: str, *args: Any, **kwargs: Any) -> None:
        _refuse(target)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        _refuse(name)

    def register_module(self, name: str, module: nn.Module | None) -> None:
        _refuse(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        _refuse(name)

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        _refuse(name)

    def can_generate(self) -> bool:
        """False: ``transformers`` asks this of a model, and an engine is one forward pass."""
        return False


class _Nothing:
    """An iterator over nothing, which says why to whoever calls ``next()`` on it."""

    def __init__(self, what: str):
        self._message = f"a compiled module has no {what}"

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        raise StopIteration(self._message)


def _refuse(name: str) -> NoReturn:
    raise NoLayers(
        f"{name!r} cannot be added: a compiled module is one engine and holds no layers, parameters or buffers. Put it"
        " beside: torch.nn.Sequential(fast, layer), or a module of yours that holds both."
    )
