"""Collections of example inputs, of which ``torch2trt(module, dataset)`` reads the ranges of shapes."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from .flattener import Flattener

__all__ = ["Dataset", "DatasetRecorder", "FolderDataset", "ListDataset", "TensorBatchDataset"]

Shapes = list[torch.Size]


class DatasetRecorder:
    """``with dataset.record(module):`` puts the positional arguments of every call of ``module`` into the dataset."""

    def __init__(self, dataset: Dataset, module: nn.Module):
        self.dataset = dataset
        self.module = module
        self.handle: Any = None

    def __enter__(self) -> DatasetRecorder:
        if self.handle is not None:
            raise RuntimeError("DatasetRecorder is already active.")
        self.handle = self.module.register_forward_pre_hook(lambda _, args: self.dataset.insert(args))
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None


class Dataset:
    """Items are the positional arguments of a call; subclasses have ``__len__``, ``__getitem__`` and ``insert``."""

    _flattener: Flattener | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def insert(self, item: Any) -> None:
        raise NotImplementedError

    def record(self, module: nn.Module) -> DatasetRecorder:
        return DatasetRecorder(self, module)

    @property
    def flattener(self) -> Flattener:
        """How an item is flattened, as its first one shows. Raises ValueError where there is none."""
        if self._flattener is None:
            if not len(self):
                raise ValueError("The dataset is empty, so the structure of its items is not known.")
            self._flattener = Flattener.from_value(self[0])
        return self._flattener

    def num_inputs(self) -> int:
        return len(self.getitem_flat(0))

    def getitem_flat(self, index: int) -> list[torch.Tensor]:
        return self.flattener.flatten(self[index])

    def item_numel(self, index: int) -> int:
        return sum(tensor.numel() for tensor in self.getitem_flat(index))

    def shapes_for_index(self, index: int, flat: bool = False) -> Any:
        return self._nested([tensor.shape for tensor in self.getitem_flat(index)], flat)

    def shapes(self, flat: bool = False) -> Any:
        """For every input, its shapes in all items."""
        items = [self.getitem_flat(index) for index in range(len(self))]
        return self._nested([[item[i].shape for item in items] for i in range(self.num_inputs())], flat)

    def min_shapes(self, flat: bool = False) -> Any:
        return self._extreme(min, flat)

    def max_shapes(self, flat: bool = False) -> Any:
        return self._extreme(max, flat)

    def median_numel_shapes(self, flat: bool = False) -> Any:
        """The shapes of the item whose number of elements is the median (the upper one of two)."""
        order = sorted(range(len(self)), key=self.item_numel)
        return self.shapes_for_index(order[len(order) // 2], flat)

    def infer_dynamic_axes(self, flat: bool = False) -> Any:
        """For every input, the axes whose size is not the same in all items."""
        axes = [
            [axis for axis, (low, high) in enumerate(zip(lowest, highest)) if low != high]
            for lowest, highest in zip(self.min_shapes(flat=True), self.max_shapes(flat=True))
        ]
        return self._nested(axes, flat)

    def _extreme(self, choose: Callable[[Iterable[int]], int], flat: bool) -> Any:
        found: Shapes = []
        for shapes in self.shapes(flat=True):
            if len({len(shape) for shape in shapes}) > 1:
                raise ValueError(f"The items of the dataset differ in rank: {', '.join(map(str, map(tuple, shapes)))}.")
            found.append(torch.Size([choose(sizes) for sizes in zip(*shapes)]))
        return self._nested(found, flat)

    def _nested(self, values: Sequence[Any], flat: bool) -> Any:
        return values if flat else self.flattener.unflatten(values)


class ListDataset(Dataset):
    """Items in a list."""

    def __init__(self, items: Iterable[Any] | None = None):
        self.items = list(items or ())

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def insert(self, item: Any) -> None:
        self.items.append(item)


class TensorBatchDataset(Dataset):
    """Items along axis 0 of tensors: item ``i`` is ``tensor[i : i + 1]`` of each."""

    def __init__(self, tensors: Any = None):
        self.tensors: list[torch.Tensor] | None = None
        if tensors is not None:
            self._flattener = Flattener.from_value(tensors)
            self.tensors = self._flattener.flatten(tensors)

    def __len__(self) -> int:
        return len(self.tensors[0]) if self.tensors else 0

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"The dataset has {len(self)} items; there is no item {index}.")
        assert self.tensors is not None
        return self.flattener.unflatten([tensor[index : index + 1] for tensor in self.tensors])

    def insert(self, tensors: Any) -> None:
        if self.tensors is None:
            self._flattener = Flattener.from_value(tensors)
            self.tensors = self._flattener.flatten(tensors)
            return
        new = Flattener.from_value(tensors)
        if len(new) != len(self.tensors):
            raise ValueError(f"The dataset's items have {len(self.tensors)} tensors; the inserted one has {len(new)}.")
        self.tensors = [torch.cat(pair) for pair in zip(self.tensors, self.flattener.flatten(tensors))]


class FolderDataset(Dataset):
    """Items in files ``input_<n>.pth`` of a folder, which is made if it is not there. They are read with plain
    ``torch.load``, so that a file cannot run code."""

    def __init__(self, folder: str | os.PathLike[str]):
        os.makedirs(folder, exist_ok=True)
        self.folder = os.fspath(folder)

    def file_paths(self) -> list[str]:
        return sorted(glob.glob(os.path.join(glob.escape(self.folder), "*.pth")))

    def __len__(self) -> int:
        return len(self.file_paths())

    def __getitem__(self, index: int) -> Any:
        return torch.load(self.file_paths()[index], weights_only=True)

    def insert(self, tensors: Any) -> None:
        number = 0
        while os.path.exists(os.path.join(self.folder, f"input_{number}.pth")):
            number += 1
        torch.save(tensors, os.path.join(self.folder, f"input_{number}.pth"))
