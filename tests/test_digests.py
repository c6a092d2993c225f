"""Digests by all cores are digests: of content, length and order, whatever else is hashed beside."""

from __future__ import annotations

import types

import torch

from torchtrt_bridge.digests import _AT_ONCE, CHUNK, digest, digests
from torchtrt_bridge.runtime.contents import contents
from torchtrt_bridge.tensor_digests import TensorDigests


def test_every_byte_the_length_and_the_order_count():
    large = bytearray(2 * CHUNK + 5)
    seen = {digest(bytes(large)), digest(bytes(large[:-1])), digest(bytes(large[:CHUNK])), digest(b""), digest(b"\0")}
    for place in (0, CHUNK - 1, CHUNK, len(large) - 1):
        large[place] = 1
        seen.add(digest(bytes(large)))
        large[place] = 0
    seen.add(digest(b"a" * CHUNK + b"b" * CHUNK))
    seen.add(digest(b"b" * CHUNK + b"a" * CHUNK))
    assert len(seen) == 11


def test_company_changes_nothing():
    given = [b"one", bytes(CHUNK + 1), b"", bytes(3)]
    assert list(digests(given)) == [digest(content) for content in given]


def test_what_is_hashed_is_asked_for_in_batches():
    asked = []

    def made():
        for index in range(4):
            asked.append(index)
            yield memoryview(bytes(_AT_ONCE // 2))

    found = digests(made())
    next(found)
    assert asked == [0, 1]


def test_a_tensor_is_read_once_and_again_when_it_was_written_to(monkeypatch):
    read = []
    monkeypatch.setattr("torchtrt_bridge.tensor_digests.contents", lambda t: read.append(t) or contents(t))
    known, x = TensorDigests(), torch.arange(12.0).reshape(3, 4)
    first = known.of([x, x.detach(), x.t(), x[1:], x.view(torch.int32)])
    assert len(read) == 4 and len(set(first)) == 3  # as integers, the bytes are the same
    assert known.of([x]) == first[:1] == [digest(contents(x))] and len(read) == 4
    x[0, 0] = 7
    assert known.of([x.t(), x]) == [digest(contents(x.t())), digest(contents(x))] and len(read) == 6
    with torch.inference_mode():
        y = torch.zeros(2)
        before = known.of([y])
        y += 1
        assert known.of([y]) != before


def test_what_is_on_a_gpu_passes_through_a_buffer_and_has_the_same_digests(monkeypatch):
    """With tensors on the CPU that say they are on a GPU; where the buffer cannot be had, they are read one by one."""
    tensors = [
        torch.arange(3 * 2**20, dtype=torch.float32).reshape(3, -1),  # three chunks
        torch.arange(12.0).reshape(3, 4).t(),
        torch.tensor([1 + 2j, 3j]).conj(),
        torch.zeros(0),
        torch.tensor(True),
        *(torch.full((7,), index) for index in range(40)),
    ]
    expected = [digest(contents(tensor)) for tensor in tensors]
    waited = []
    stream = types.SimpleNamespace(synchronize=lambda: waited.append(1))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    assert TensorDigests().of(tensors) == expected and len(waited) == 3  # 46 chunks, 16 at once
    waited.clear()
    monkeypatch.setattr(torch, "empty", no_memory)
    assert TensorDigests().of(tensors) == expected and not waited


def no_memory(*args, **kwargs):
    raise RuntimeError("CUDA error: out of memory")


def test_no_later_tensor_is_taken_for_one_that_is_gone():
    known = TensorDigests()
    seen = {known.of([torch.full((1000,), float(value))])[0] for value in range(50)}
    assert len(seen) == 50
