"""Digests by all cores are digests: of content, length and order, whatever else is hashed beside."""

from __future__ import annotations

from torchtrt_bridge.digests import _AT_ONCE, _CHUNK, digest, digests


def test_every_byte_the_length_and_the_order_count():
    large = bytearray(2 * _CHUNK + 5)
    seen = {digest(bytes(large)), digest(bytes(large[:-1])), digest(bytes(large[:_CHUNK])), digest(b""), digest(b"\0")}
    for place in (0, _CHUNK - 1, _CHUNK, len(large) - 1):
        large[place] = 1
        seen.add(digest(bytes(large)))
        large[place] = 0
    seen.add(digest(b"a" * _CHUNK + b"b" * _CHUNK))
    seen.add(digest(b"b" * _CHUNK + b"a" * _CHUNK))
    assert len(seen) == 11


def test_company_changes_nothing():
    contents = [b"one", bytes(_CHUNK + 1), b"", bytes(3)]
    assert list(digests(contents)) == [digest(content) for content in contents]


def test_what_is_hashed_is_asked_for_in_batches():
    asked = []

    def contents():
        for index in range(4):
            asked.append(index)
            yield memoryview(bytes(_AT_ONCE // 2))

    found = digests(contents())
    next(found)
    assert asked == [0, 1]
