"""A digest of many bytes, by all cores: weights and plans are hundreds of megabytes, and SHA-256 takes a second for
these on one."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Iterable, Iterator

CHUNK = 4 * 2**20
_AT_ONCE = 256 * 2**20  # what is asked for ahead of being hashed


def digests(contents: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The digest of each of ``contents``, 32 bytes: SHA-256 over its length and the SHA-256 of every 4 MiB of it."""
    with pool() as threads:
        for views in _batches(contents):
            chunks = [view[begin : begin + CHUNK] for view in views for begin in range(0, len(view), CHUNK)]
            leaves = threads.map(sha256, chunks)  # hashlib lets go of the interpreter's lock
            yield from (root(len(view), leaves) for view in views)


def digest(content: bytes | memoryview) -> bytes:
    """The digest of ``content`` alone."""
    return next(digests([content]))


def pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))


def root(length: int, leaves: Iterator[bytes]) -> bytes:
    """The digest of a content of ``length`` bytes; its chunks' are the next of ``leaves``."""
    whole = hashlib.sha256(str(length).encode() + b"\0")
    for _ in range(0, length, CHUNK):
        whole.update(next(leaves))
    return whole.digest()


def _batches(contents: Iterable[bytes | memoryview]) -> Iterator[list[memoryview]]:
    batch: list[memoryview] = []
    for content in contents:
        batch.append(memoryview(content).cast("B"))
        if sum(map(len, batch)) >= _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def sha256(content: memoryview) -> bytes:
    return hashlib.sha256(content).digest()
