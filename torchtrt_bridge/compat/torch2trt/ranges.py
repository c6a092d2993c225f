"""torch2trt's shape arguments as dynamic dims, and the capture with them.

torch2trt says a range for every axis and nothing of which sizes must be equal; torch.export wants to know. So every
axis is first a dim of its own. Where the model ties some together, axes of the same range and place in different inputs
become one dim. An axis whose other sizes the model itself cannot take is left as it is, with a warning.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...capture import CapturedModel, capture
from ...dynamic import resize
from ...errors import CaptureFailed, InvalidInput, InvalidOption
from ...signature import Dim
from .dataset import Dataset, ListDataset
from .flattener import Flattener

Place = tuple[int, int]  # which flat input, which axis


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@dataclasses.dataclass(frozen=True)
class Ranges:
    """``example``: the arguments of a call. ``places``: (min, opt, max) of each axis that is not fixed."""

    example: tuple[Any, ...]
    flattener: Flattener
    places: Mapping[Place, tuple[int, int, int]]

    @classmethod
    def of(cls, inputs: Any, min_shapes: Any, opt_shapes: Any, max_shapes: Any, max_batch_size: int | None) -> Ranges:
        """Raises InvalidOption: the shapes do not fit the inputs, or one another."""
        dataset = inputs if isinstance(inputs, Dataset) else ListDataset([inputs])
        if not len(dataset):
            raise InvalidOption("The dataset is empty; at least one example of the inputs is needed.")
        if not isinstance(dataset[0], (list, tuple)):
            raise InvalidOption(
                f"inputs is a {type(dataset[0]).__name__}; a list or tuple of the arguments is needed, as [x]."
            )
        example = tuple(dataset[0])
        flattener = Flattener.from_value(example, _is_tensor)
        items = [flattener.flatten(dataset[i]) for i in range(len(dataset))]
        usual = sorted(items, key=lambda item: sum(t.numel() for t in item))[len(items) // 2]

        def shapes(given: Any, name: str, default: Any) -> list[tuple[int, ...]]:
            if given is None:
                return [default(i) for i in range(len(flattener))]
            try:
                found = [tuple(map(int, shape)) for shape in flattener.flatten(given)]
            except (TypeError, KeyError, IndexError, ValueError):
                found = []
            if [len(shape) for shape in found] != [t.dim() for t in items[0]]:
                raise InvalidOption(f"{name}={given!r}: nested as the inputs are, a shape for each tensor is needed.")
            return found

        def extreme(choose: Any) -> Any:
            return lambda i: tuple(choose(sizes) for sizes in zip(*(item[i].shape for item in items)))

        low = shapes(min_shapes, "min_shapes", extreme(min))
        opt = shapes(opt_shapes, "opt_shapes", lambda i: tuple(usual[i].shape))
        high = shapes(max_shapes, "max_shapes", extreme(max))
        if max_batch_size is not None:
            low = [(1, *shape[1:]) for shape in low]
            high = [(max_batch_size, *shape[1:]) for shape in high]
        return cls(example, flattener, _places(items[0], low, opt, high))

    def dynamic_shapes(self, module: nn.Module, shared: bool) -> Any:
        """What :func:`torchtrt_bridge.capture.capture` takes; ``shared``: same range, axis and size, one Dim."""
        if not self.places:
            return None
        dims: dict[Any, Dim] = {}
        axes: list[dict[int, Dim]] = [{} for _ in range(len(self.flattener))]
        tensors = self.flattener.flatten(self.example)
        for (index, axis), sizes in self.places.items():
            key = (axis, sizes, tensors[index].shape[axis]) if shared else (index, axis)
            axes[index][axis] = dims.setdefault(key, Dim(*sizes))
        nest = _prune(self.flattener.unflatten(axes))
        return dict(inspect.signature(module.forward).bind(*nest).arguments)

    def without(self, dropped: Sequence[Place]) -> Ranges:
        places = {place: sizes for place, sizes in self.places.items() if place not in dropped}
        return dataclasses.replace(self, places=places)

    def impossible(self, module: nn.Module) -> list[Place]:
        """The axes that the model takes at the example's size and not at another end of their range."""
        return [place for group in self._groups() if not self._runs(module, group) for place in group]

    def _groups(self) -> Iterator[list[Place]]:
        """Axes that change together: of the same number, range and size."""
        tensors = self.flattener.flatten(self.example)
        groups: dict[Any, list[Place]] = {}
        for (index, axis), sizes in self.places.items():
            groups.setdefault((axis, sizes, tensors[index].shape[axis]), []).append((index, axis))
        return iter(groups.values())

    def _runs(self, module: nn.Module, group: Sequence[Place]) -> bool:
        tensors = [t.clone() for t in self.flattener.flatten(self.example)]
        for index, axis in group:
            shape = list(tensors[index].shape)
            low, _, high = self.places[index, axis]
            shape[axis] = high if shape[axis] != high else low
            tensors[index] = resize(tensors[index], shape)
        arguments = _with_tensors(self.example, iter(tensors))
        try:
            with torch.no_grad():
                module(*arguments)
        except Exception:  # whatever the model itself raises: it cannot be called so
            return False
        return True


def capture_with(module: nn.Module, ranges: Ranges) -> CapturedModel:
    """Raises what :func:`torchtrt_bridge.capture.capture` raises for the ranges as they were given."""
    try:
        return _capture(module, ranges)
    except (CaptureFailed, InvalidInput):
        dropped = ranges.impossible(module)
        if not dropped:
            raise
    tensors = ranges.flattener.flatten(ranges.example)
    for index, axis in dropped:
        warnings.warn(
            f"axis {axis} of input {index} stays at {tensors[index].shape[axis]}: the module itself fails at other"
            f" sizes of the range {ranges.places[index, axis]}",
            stacklevel=3,
        )
    return _capture(module, ranges.without(dropped))


def _capture(module: nn.Module, ranges: Ranges) -> CapturedModel:
    try:
        return capture(module, ranges.example, dynamic_shapes=ranges.dynamic_shapes(module, shared=False))
    except (CaptureFailed, InvalidInput):
        if len(ranges.places) < 2:
            raise
        return capture(module, ranges.example, dynamic_shapes=ranges.dynamic_shapes(module, shared=True))


def _places(
    tensors: Sequence[torch.Tensor],
    low: Sequence[tuple[int, ...]],
    opt: Sequence[tuple[int, ...]],
    high: Sequence[tuple[int, ...]],
) -> dict[Place, tuple[int, int, int]]:
    places = {}
    for index, tensor in enumerate(tensors):
        for axis, sizes in enumerate(zip(low[index], opt[index], high[index])):
            size = tensor.shape[axis]
            if not sizes[0] <= sizes[1] <= sizes[2]:
                raise InvalidOption(f"axis {axis} of input {index}: min, opt and max shapes say {sizes}, not in order.")
            if sizes[0] != sizes[2]:
                places[index, axis] = sizes
            elif sizes[0] != size:
                raise InvalidOption(
                    f"axis {axis} of input {index} has size {size}; min_shapes and max_shapes both say {sizes[0]}."
                )
    return places


def _prune(nest: Any) -> Any:
    """``nest`` with None in place of everything in which no axis is dynamic."""
    if isinstance(nest, (list, tuple)):
        children = [_prune(child) for child in nest]
        return tuple(children) if any(child is not None for child in children) else None
    if isinstance(nest, Mapping):
        if all(isinstance(value, Dim) for value in nest.values()):
            return nest or None
        kept = {key: _prune(child) for key, child in nest.items()}
        return kept if any(child is not None for child in kept.values()) else None
    return nest


def _with_tensors(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """``value`` with its tensors replaced, in the flattener's order."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, (list, tuple)):
        children = [_with_tensors(child, tensors) for child in value]
        return tuple(children) if isinstance(value, tuple) else children
    if isinstance(value, Mapping):
        return {key: _with_tensors(value[key], tensors) for key in sorted(value)}
    return value
