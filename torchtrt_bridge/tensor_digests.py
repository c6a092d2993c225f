"""The digests of tensors, wherever they are, each made once."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .digests import CHUNK, digests, pool, root, sha256
from .runtime.contents import contents

_SLOTS = 16  # chunks that are copied from a GPU at once

_log = logging.getLogger("torchtrt_bridge")


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


def _staged(tensors: Sequence[torch.Tensor]) -> Iterator[bytes]:
    """What :func:`digests` gives for the contents of tensors on a GPU: they pass through one buffer of pinned memory,
    where copies of their own would each cost fresh pages."""
    with pool() as threads:
        leaves = _leaves(_chunks(tensors), threads)
        yield from (root(tensor.numel() * tensor.element_size(), leaves) for tensor in tensors)


def _chunks(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    for tensor in tensors:  # one by one: what is not contiguous is copied
        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        yield from (flat[begin : begin + CHUNK] for begin in range(0, len(flat), CHUNK))


def _leaves(chunks: Iterator[torch.Tensor], threads: concurrent.futures.ThreadPoolExecutor) -> Iterator[bytes]:
    buffer = torch.empty((_SLOTS, CHUNK), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    while batch := list(itertools.islice(chunks, _SLOTS)):
        copies = [slot[: len(chunk)].copy_(chunk, non_blocking=True) for slot, chunk in zip(buffer, batch)]
        for device in {chunk.device for chunk in batch if chunk.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        yield from list(threads.map(sha256, [memoryview(copy.numpy()) for copy in copies]))
