"""A digest of many bytes, by all cores: weights and plans are hundreds of megabytes, and SHA-256 takes a second for
these on one."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Iterable, Iterator

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
