"""A digest of many bytes, by all cores: weights and plans are hundreds of megabytes, and SHA-256 takes a second for
these on one."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .runtime.contents import contents

_CHUNK = 4 * 2**20
_AT_ONCE = 256 * 2**20  # what is asked for ahead of being hashed
_SLOTS = 16  # chunks that are copied from a GPU at once

_log = logging.getLogger("torchtrt_bridge")


def digests(contents: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The digest of each of ``contents``, 32 bytes: SHA-256 over its length and the SHA-256 of every 4 MiB of it."""
    with _pool() as pool:
        for views in _batches(contents):
            chunks = [view[begin : begin + _CHUNK] for view in views for begin in range(0, len(view), _CHUNK)]
            leaves = pool.map(_sha256, chunks)  # hashlib lets go of the interpreter's lock
            yield from (_root(len(view), leaves) for view in views)


def digest(content: bytes | memoryview) -> bytes:
    """The digest of ``content`` alone."""
    return next(digests([content]))


def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))


def _root(length: int, leaves: Iterator[bytes]) -> bytes:
    """The digest of a content of ``length`` bytes; its chunks' are the next of ``leaves``."""
    root = hashlib.sha256(str(length).encode() + b"\0")
    for _ in range(0, length, _CHUNK):
        root.update(next(leaves))
    return root.digest()


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


def _staged(tensors: Sequence[torch.Tensor]) -> Iterator[bytes]:
    """What :func:`digests` gives for the contents of tensors on a GPU: they pass through one buffer of pinned memory,
    where copies of their own would each cost fresh pages."""
    flat = [t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8) for t in tensors]
    chunks = (tensor[begin : begin + _CHUNK] for tensor in flat for begin in range(0, len(tensor), _CHUNK))
    with _pool() as pool:
        leaves = _leaves(chunks, pool)
        yield from (_root(len(tensor), leaves) for tensor in flat)


def _leaves(chunks: Iterator[torch.Tensor], pool: concurrent.futures.ThreadPoolExecutor) -> Iterator[bytes]:
    buffer = torch.empty((_SLOTS, _CHUNK), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    while batch := list(itertools.islice(chunks, _SLOTS)):
        copies = [slot[: len(chunk)].copy_(chunk, non_blocking=True) for slot, chunk in zip(buffer, batch)]
        for device in {chunk.device for chunk in batch if chunk.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        yield from list(pool.map(_sha256, [memoryview(copy.numpy()) for copy in copies]))


class TensorDigests:
    """The digests of tensors, each made once. It keeps the tensors: memory that is let go of may become another's."""

    def __init__(self) -> None:
        self._found: dict[Any, tuple[bytes, torch.Tensor]] = {}

    def of(self, tensors: Sequence[torch.Tensor]) -> list[bytes]:
        """The digest of the bytes of each of ``tensors``, in row-major order."""
        keys = [_identity(tensor) for tensor in tensors]
        unknown = {key: tensor for key, tensor in zip(keys, tensors) if key not in self._found}
        there = {key: tensor for key, tensor in unknown.items() if tensor.is_cuda and tensor.layout == torch.strided}
        try:
            self._keep(there, _staged(list(there.values())))
        except RuntimeError as error:  # no pinned memory, or no memory on the GPU for what is not contiguous
            _log.info("weights are read from the GPU one by one: %s", error)
        rest = {key: tensor for key, tensor in unknown.items() if key not in self._found}
        self._keep(rest, digests(map(contents, rest.values())))
        return [self._found[key][0] for key in keys]

    def _keep(self, tensors: Mapping[Any, torch.Tensor], found: Iterable[bytes]) -> None:
        self._found.update((key, (one, tensors[key])) for key, one in zip(tensors, found, strict=True))


def _identity(tensor: torch.Tensor) -> Any:
    """What tensors of the same bytes share: the place in memory, how it is read, and how often it was written to. One
    that keeps no count of that is like no other."""
    if tensor.is_inference():
        return object()
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
    return place, tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg(), tensor._version
