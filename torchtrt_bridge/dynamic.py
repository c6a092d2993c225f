"""What the user says about dynamic shapes, as torch.export's Dims and as TensorRT's optimization profile."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from .errors import InvalidOption, nearest
from .expressions import BadExpression, evaluate
from .expressions import names as expression_names
from .signature import Dim

_GOLDEN = 0.618034
"""Multiples of it, modulo 1, are all different."""


@dataclasses.dataclass(frozen=True, eq=False)
class DynamicShapes:
    """The dynamic dims of flat inputs: ``axes[i]`` maps an axis of input ``names[i]`` to the name of its dim."""

    names: tuple[str, ...]
    dims: Mapping[str, Dim]
    axes: tuple[Mapping[int, str], ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def parse(
        cls,
        dynamic_shapes: Any,
        dynamic_batch: tuple[int, int, int] | None,
        names: Sequence[str],
        tensors: Sequence[torch.Tensor],
        arguments: Sequence[str] = (),
    ) -> DynamicShapes:
        """``dynamic_shapes`` maps an input's name (a dotted path for nested ones) to ``{axis: Dim}``; it may be nested
        as the inputs are, and its first level a sequence in the order of ``arguments`` (the captured parameters of
        ``forward``). ``dynamic_batch=(min, opt, max)`` is the same Dim on axis 0 of every input that has the first
        input's batch size.

        Raises:
            InvalidOption: an unknown input, an axis that it does not have, something that is no Dim.
        """
        if dynamic_shapes is not None and dynamic_batch is not None:
            raise InvalidOption("Give dynamic_shapes or dynamic_batch, not both: the batch is one more Dim.")
        wanted: list[dict[int, Dim]] = [{} for _ in names]
        if dynamic_batch is not None:
            if not isinstance(dynamic_batch, (tuple, list)) or len(dynamic_batch) != 3:
                raise InvalidOption(f"dynamic_batch={dynamic_batch!r}: it must be (min, opt, max), as (1, 8, 32).")
            sized = [tensor for tensor in tensors if tensor.dim()]
            if not sized:
                raise InvalidOption("dynamic_batch needs an input with at least one dimension; all are 0-dim.")
            batch = Dim(*dynamic_batch, name="batch")
            for index, tensor in enumerate(tensors):
                if tensor.dim() and tensor.shape[0] == sized[0].shape[0]:
                    wanted[index][0] = batch
        elif dynamic_shapes is not None:
            if _is_sequence(dynamic_shapes):
                dynamic_shapes = _by_argument(dynamic_shapes, arguments or tuple(dict.fromkeys(_tops(names))))
            _collect(dynamic_shapes, "", list(names), tensors, wanted)
        return _name(wanted, names, tensors)

    def spec_shape(self, index: int, shape: Sequence[int]) -> tuple[int | str, ...]:
        """The shape of input ``index`` with its dynamic sizes as names."""
        return tuple(self.axes[index].get(axis, int(size)) for axis, size in enumerate(shape))

    def shape_at(self, index: int, which: str) -> tuple[int, ...]:
        """The shape of input ``index`` at the ``"min"``, ``"opt"`` or ``"max"`` of every dim."""
        return tuple(
            getattr(self.dims[self.axes[index][axis]], which) if axis in self.axes[index] else size
            for axis, size in enumerate(self.shapes[index])
        )

    def example_shape(self, index: int) -> tuple[int, ...]:
        """The shape to capture with. Sizes 0 and 1 would be specialized, and one size for two dims would equate them,
        so each dim has its own size of at least 2 where its range allows it."""
        sizes = self.example_sizes()
        axes = self.axes[index]
        return tuple(sizes[axes[a]] if a in axes else size for a, size in enumerate(self.shapes[index]))

    def example_sizes(self) -> dict[str, int]:
        given: dict[str, int] = {}
        for axes, shape in zip(self.axes, self.shapes):
            for axis, name in axes.items():
                given.setdefault(name, shape[axis])
        sizes: dict[str, int] = {}
        for name, dim in self.dims.items():
            size = given[name]
            if not max(2, dim.min) <= size <= dim.max:
                size = min(max(2, dim.min), dim.max)
            sizes[name] = size
        return sizes

    def for_export(self) -> tuple[dict[int, Any] | None, ...]:
        """torch.export's Dims, one spec per flat input."""
        dims = {
            name: torch.export.Dim(name, min=dim.min, max=dim.max) if dim.min != dim.max else None
            for name, dim in self.dims.items()
        }
        return tuple({axis: dims[name] for axis, name in axes.items()} or None for axes in self.axes)

    def symbols(self, program: ExportedProgram) -> dict[str, str]:
        """torch's symbols (``"s77"``) in ``program``, as the names of the dims."""
        placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        found: dict[str, str] = {}
        for name, axes in zip(program.graph_signature.user_inputs, self.axes):
            for axis, dim in axes.items():
                size = placeholders[str(name)].meta["val"].shape[axis]
                if isinstance(size, torch.SymInt):
                    found.setdefault(str(size.node.expr), dim)
        return found

    @staticmethod
    def rename(size: Any, symbols: Mapping[str, str]) -> int | str:
        """A size of torch's as an int, an expression in the dims' names, or ``"?"`` where it depends on the data, or
        in a way that no file can hold."""
        if not isinstance(size, (torch.SymInt, str)):
            return int(size)
        text = size if isinstance(size, str) else str(size.node.expr)
        renamed = re.sub(r"[A-Za-z_]\w*", lambda m: symbols.get(m[0], m[0]), text)
        try:
            return renamed if expression_names(renamed) <= set(symbols.values()) else "?"
        except BadExpression:
            return "?"


def resize(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """``tensor`` at another shape of the same rank, by repeating and cropping: ids stay ids and masks stay masks. Of
    floats, each repeat is smaller by a share of its own, an eighth at most: among equal values a sort, and what is made
    of one, may take any order."""
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    for axis, (have, want) in enumerate(zip(tensor.shape, shape)):
        if want > have > 0:
            shares = [i * _GOLDEN % 1 / 8 for i in range(-(-want // have))]
            floats = tensor.is_floating_point()
            tensor = torch.cat([tensor * (1 - share) if floats and share else tensor for share in shares], axis)
        elif have == 0 and want:
            tensor = tensor.new_zeros([*tensor.shape[:axis], want, *tensor.shape[axis + 1 :]])
        tensor = tensor.narrow(axis, 0, want)
    return tensor.contiguous()


def shapes_for(specs: Sequence[Any], sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """The shapes of ``specs`` (TensorSpecs) where the dims have ``sizes``."""
    return [tuple(evaluate(size, sizes) for size in spec.shape) for spec in specs]


def _collect(
    given: Any, path: str, names: list[str], tensors: Sequence[torch.Tensor], wanted: list[dict[int, Dim]]
) -> None:
    """Fill ``wanted`` from a nest of mappings and sequences that ends in ``{axis: Dim}`` or a sequence of Dims."""
    if given is None:
        return
    if path in names:
        index = names.index(path)
        if not isinstance(given, Mapping) and not _is_sequence(given):
            raise InvalidOption(f"dynamic_shapes: {path!r} is {given!r}; give its axes, as {{0: Dim(min, opt, max)}}.")
        axes = given if isinstance(given, Mapping) else dict(enumerate(given))
        for axis, dim in axes.items():
            if dim is None:
                continue
            rank = tensors[index].dim()
            if type(axis) is not int or not -rank <= axis < rank:
                raise InvalidOption(f"dynamic_shapes: {path!r} has {rank} dimensions, so there is no axis {axis!r}.")
            if isinstance(dim, (tuple, list)) and len(dim) == 3:
                dim = Dim(*dim)
            if not isinstance(dim, Dim):
                raise InvalidOption(
                    f"dynamic_shapes: axis {axis} of {path!r} is {dim!r}; it must be a ttb.Dim(min, opt, max)."
                )
            wanted[index][axis % rank] = dim
        return
    children = given.items() if isinstance(given, Mapping) else enumerate(given) if _is_sequence(given) else None
    if children is None or (path and not any(name.startswith(f"{path}.") for name in names)):
        raise InvalidOption(
            f"dynamic_shapes names {path!r}, which is no input of the model; its inputs are {', '.join(names)}."
            + nearest(path, names)
        )
    for key, child in children:
        _collect(child, f"{path}.{key}" if path else str(key), names, tensors, wanted)


def _by_argument(given: Sequence[Any], arguments: Sequence[str]) -> dict[str, Any]:
    if len(given) > len(arguments):
        raise InvalidOption(
            f"dynamic_shapes has {len(given)} entries; the inputs are {len(arguments)}: {', '.join(arguments)}."
        )
    return dict(zip(arguments, given))


def _tops(names: Sequence[str]) -> list[str]:
    return [name.split(".")[0] for name in names]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _name(wanted: list[dict[int, Dim]], names: Sequence[str], tensors: Sequence[torch.Tensor]) -> DynamicShapes:
    """Give every distinct Dim a name; check that places of one Dim agree."""
    dims: dict[str, Dim] = {}
    by_object: dict[int, str] = {}
    axes: list[dict[int, str]] = []
    sizes: dict[str, tuple[int, str]] = {}
    for index, places in enumerate(wanted):
        named: dict[int, str] = {}
        for axis, dim in sorted(places.items()):
            label = by_object.get(id(dim)) or dim.name or f"{re.sub(r'[^0-9A-Za-z_]', '_', names[index])}_dim{axis}"
            if dim.min < dim.max < 2:
                raise InvalidOption(
                    f"dynamic_shapes: axis {axis} of {names[index]!r} is {dim}; sizes 0 and 1 alone cannot be dynamic"
                    " (torch.export fixes them). Raise the max to 2, or leave the axis out."
                )
            known = dims.get(label)
            if known is not None and (known.min, known.opt, known.max) != (dim.min, dim.opt, dim.max):
                raise InvalidOption(f"dynamic_shapes: two Dims are both named {label!r} but differ: {known} and {dim}.")
            by_object[id(dim)] = label
            dims[label] = Dim(dim.min, dim.opt, dim.max, label)
            size, place = tensors[index].shape[axis], f"axis {axis} of {names[index]!r}"
            if sizes.setdefault(label, (size, place))[0] != size:
                raise InvalidOption(
                    f"dynamic_shapes: {place} (size {size}) and {sizes[label][1]} (size {sizes[label][0]}) share the"
                    f" dim {label!r}, so they must have the same size."
                )
            named[axis] = label
        axes.append(named)
    return DynamicShapes(tuple(names), dims, tuple(axes), tuple(tuple(t.shape) for t in tensors))
