"""A digest of many bytes, by all cores: weights and plans are hundreds of megabytes, and SHA-256 takes a second for
these on one."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from .runtime.contents import contents

_CHUNK = 4 * 2**20
_AT_ONCE = 256 * 2**20  # what is asked for ahead of being hashed: weights may have to be copied from a GPU


def digests(contents: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The digest of each of ``contents``, 32 bytes: SHA-256 over its length and the SHA-256 of every 4 MiB of it."""
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for views in _batches(contents):
            chunks = [view[begin : begin + _CHUNK] for view in views for begin in range(0, len(view), _CHUNK)]
            leaves = list(pool.map(_sha256, chunks))[::-1]  # hashlib lets go of the interpreter's lock
            for view in views:
                root = hashlib.sha256(str(len(view)).encode() + b"\0")
                for _ in range(0, len(view), _CHUNK):
                    root.update(leaves.pop())
                yield root.digest()


def digest(content: bytes | memoryview) -> bytes:
    """The digest of ``content`` alone."""
    return next(digests([content]))


def _batches(contents: Iterable[bytes | memoryview]) -> Iterator[list[memoryview]]:
    batch: list[memoryview] = []
    for content in contents:
        batch.append(memoryview(content).cast("B"))
        if sum(map(len, batch)) >= _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _sha256(content: memoryview) -> bytes:
    return hashlib.sha256(content).digest()


class TensorDigests:
    """The digests of tensors, each made once. It keeps the tensors: memory that is let go of may become another's."""

    def __init__(self) -> None:
        self._found: dict[Any, tuple[bytes, torch.Tensor]] = {}

    def of(self, tensors: Sequence[torch.Tensor]) -> list[bytes]:
        """The digest of the bytes of each of ``tensors``, in row-major order."""
        keys = [_identity(tensor) for tensor in tensors]
        unknown = {key: tensor for key, tensor in zip(keys, tensors) if key not in self._found}
        made = digests(map(contents, unknown.values()))
        self._found.update((key, (one, unknown[key])) for key, one in zip(unknown, made, strict=True))
        return [self._found[key][0] for key in keys]


def _identity(tensor: torch.Tensor) -> Any:
    """What tensors of the same bytes share: the place in memory, how it is read, and how often it was written to. One
    that keeps no count of that is like no other."""
    if tensor.is_inference():
        return object()
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
    return place, tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg(), tensor._version
