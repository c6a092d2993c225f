"""Calibration data in whatever form it comes, as flat inputs of the captured model, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..capture import CapturedModel
from ..errors import InvalidInput, InvalidOption
from ..flat_call import as_call
from ..runtime.contents import contents
from ..signature import TensorSpec


class Batches:
    """Iterating gives a list of flat input tensors for each batch, on the model's device. Once.

    Args:
        captured: the model that they are for.
        data: a DataLoader, a dataset, or another iterable; its items are what the model is called with: a tensor, a
            tuple of positional arguments, or a dict of keyword arguments.
        select: picks that from an item that holds more (labels): a function, or an index or key.
        limit: the most batches to take.

    Attributes:
        count, examples: how many were given so far.

    Raises:
        InvalidInput: no item at all; an item that does not fit the model, with its number.
    """

    def __init__(self, captured: CapturedModel, data: Any, select: Any = None, limit: int | None = None):
        self._captured, self._select, self._limit = captured, _selector(select), limit
        self._data = _iterable(data, _usual_size(captured))
        self._digest = hashlib.sha256()
        self._keys: list[str] | None = None
        self.count = self.examples = 0

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        number = -1
        for number, item in enumerate(self._data):
            for tensors in self._checked(item, f"Batch {number} of the calibration data"):
                if self.count == self._limit:
                    return
                yield tensors
                self.count += 1
                self.examples += tensors[0].shape[0] if tensors[0].ndim else 1
        if number < 0:
            raise InvalidInput(
                "The calibration data is empty: it gave no batch. (An iterator or generator that was used before gives"
                " nothing; give the DataLoader, the dataset or a list itself.)"
            )
        if not self.count:
            raise InvalidInput(
                "No batch of the calibration data is as large as the batch that the model is compiled for. Give larger"
                " ones, or compile with dynamic_batch=."
            )

    @property
    def digest(self) -> str:
        """SHA-256 of the tensors given so far."""
        return self._digest.hexdigest()

    def _checked(self, item: Any, where: str) -> Iterator[list[torch.Tensor]]:
        """``item`` as one or more lists of tensors of sizes that the model takes."""
        item = self._select(item, where)
        self._check_keys(item, where)
        given = as_call(item)
        if given is None:
            raise InvalidInput(
                f"{where} is a {type(item).__name__}: tensors, tuples of arguments and dicts of them can be."
            )
        args, kwargs = given
        try:
            tensors = self._captured.signature.bind(args, kwargs)
        except InvalidInput as error:
            raise InvalidInput(
                f"{where} does not fit the model: {error} Labels and the like are left out by calibration_input=, a"
                " function, or the index or key of what the model takes."
            ) from None
        specs = self._captured.signature.inputs
        for spec, tensor in zip(specs, tensors):
            if tensor.dtype != spec.torch_dtype:
                raise InvalidInput(f"{where}: the input {spec.name!r} is {tensor.dtype}, and the model's {spec.dtype}.")
            if tensor.is_floating_point() and not tensor.isfinite().all():
                kind = "NaN" if tensor.isnan().any() else "infinite values"
                raise InvalidInput(f"{where}: the input {spec.name!r} holds {kind}, which have no range.")
        for part in _fitting(tensors, specs, self._captured, where):
            for tensor in part:
                self._digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
                self._digest.update(contents(tensor.detach().cpu().contiguous()))
            yield [tensor.detach().to(self._captured.device) for tensor in part]

    def _check_keys(self, item: Any, where: str) -> None:
        if not isinstance(item, Mapping):
            return
        keys = sorted(map(str, item))
        if self._keys is not None and keys != self._keys:
            raise InvalidInput(
                f"{where} has the keys {', '.join(keys)}, and the one before {', '.join(self._keys)}. All batches need"
                " the same."
            )
        self._keys = keys


def _selector(select: Any) -> Callable[[Any, str], Any]:
    if select is None:
        return lambda item, where: item
    if not callable(select) and not isinstance(select, (int, str)):
        raise InvalidOption(
            f"calibration_input={select!r}: give a function from a batch to what the model is called with, or the index"
            " or key of that in the batch."
        )

    def selected(item: Any, where: str) -> Any:
        try:
            return select(item) if callable(select) else item[select]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise InvalidInput(f"{where}: calibration_input={select!r} fails: {problem}") from error

    return selected


def _iterable(data: Any, size: int) -> Iterable[Any]:
    """``data`` as batches: a map-style dataset is made of single examples, which a DataLoader puts together."""
    from torch.utils.data import DataLoader, Dataset, IterableDataset

    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=size)
    if not isinstance(data, Iterable) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return (data[index] for index in range(len(data)))
    if isinstance(data, (torch.Tensor, str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise InvalidOption(
            f"calibration={type(data).__name__}: give an iterable of batches (a DataLoader, a dataset, a list of what"
            " the model is called with) or a Calibration."
        )
    return data


def _usual_size(captured: CapturedModel) -> int:
    first = captured.inputs[0]
    return first.shape[0] if first.ndim else 1


def _fitting(
    tensors: Sequence[torch.Tensor], specs: Sequence[TensorSpec], captured: CapturedModel, where: str
) -> Iterator[list[torch.Tensor]]:
    """``tensors``, or, where the model's batch is of a fixed size, as many parts of that size as they have."""
    size = _fixed_batch(tensors, specs)
    if size is None:
        _check_sizes(tensors, specs, captured, where)
        yield list(tensors)
        return
    for start in range(0, tensors[0].shape[0] - size + 1, size):
        part = [tensor[start : start + size] for tensor in tensors]
        _check_sizes(part, specs, captured, where)
        yield part


def _fixed_batch(tensors: Sequence[torch.Tensor], specs: Sequence[TensorSpec]) -> int | None:
    """The fixed size of axis 0 of all inputs, where the data has another there; else None."""
    wanted, given = ({s.shape[0] if len(s.shape) else None for s in side} for side in (specs, tensors))
    if wanted == given or len(wanted) != 1 or len(given) != 1:
        return None
    size = wanted.pop()
    return size if isinstance(size, int) else None


def _check_sizes(
    tensors: Sequence[torch.Tensor], specs: Sequence[TensorSpec], captured: CapturedModel, where: str
) -> None:
    dims = captured.signature.dims
    for spec, tensor in zip(specs, tensors):
        fits = tensor.ndim == len(spec.shape) and all(
            dims[size].min <= given <= dims[size].max if isinstance(size, str) else size == given
            for size, given in zip(spec.shape, tensor.shape)
        )
        if not fits:
            ranges = ", ".join(
                f"{dims[size].min} to {dims[size].max}" if isinstance(size, str) else str(size) for size in spec.shape
            )
            raise InvalidInput(
                f"{where}: the input {spec.name!r} is {list(tensor.shape)}; the model is compiled for [{ranges}]. Give"
                " data of those sizes, or compile with dynamic_shapes= that allow these."
            )
