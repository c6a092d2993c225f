"""The cache: bytes come back whole or not at all, from a folder that only its owner can have written."""

import logging
import multiprocessing
import os
import stat
import subprocess
import sys
import time

import pytest

from torchtrt_bridge import cache as cache_module
from torchtrt_bridge.cache import SIZE_VARIABLE, VARIABLE, Cache
from torchtrt_bridge.errors import InvalidOption


@pytest.fixture(autouse=True)
def _said_anew(monkeypatch):
    monkeypatch.setattr(cache_module, "_said", set())


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def entries(cache):
    return sorted(name for name in os.listdir(cache.folder) if name != "lock")


def test_bytes_come_back_also_in_another_process(cache):
    assert cache.get("resnet|sm90") is None and not os.path.exists(cache.folder)  # reading makes nothing
    cache.put("resnet|sm90", b"onnx\0\xff")
    cache.put("empty \udcff", b"")
    assert cache.get("resnet|sm90") == b"onnx\0\xff" and cache.get("empty \udcff") == b""
    assert cache.get("resnet|sm89") is None
    code = f"from torchtrt_bridge.cache import Cache; print(bytes(Cache({cache.folder!r}).get('resnet|sm90')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(b"onnx\0\xff")
    cache.put("resnet|sm90", b"torch2trt")
    assert cache.get("resnet|sm90") == b"torch2trt" and len(entries(cache)) == 2


def test_clear_removes_entries_and_nothing_else(cache):
    cache.put("a", b"1")
    (notes := open(os.path.join(cache.folder, "notes"), "w")).close()
    cache.clear()
    assert cache.get("a") is None and entries(cache) == ["notes"] and notes.closed
    Cache(os.path.join(cache.folder, "none")).clear()


def test_the_folder_and_its_files_are_the_owners_alone(cache):
    old = os.umask(0)
    try:
        cache.put("a", b"1")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(cache.folder).st_mode) == 0o700
    for name in os.listdir(cache.folder):
        assert stat.S_IMODE(os.stat(os.path.join(cache.folder, name)).st_mode) == 0o600


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c + b"x", lambda c: b"", lambda c: b"\0" + c[1:]])
def test_a_damaged_entry_is_removed(cache, caplog, damage):
    cache.put("a", b"value")
    path = os.path.join(cache.folder, *entries(cache))
    content = open(path, "rb").read()
    with open(path, "wb") as file:
        file.write(damage(content))
    with caplog.at_level(logging.WARNING, "torchtrt_bridge"):
        assert cache.get("a") is None
    assert "is damaged; it is removed" in caplog.text and entries(cache) == []


def test_every_flipped_byte_is_noticed(cache):
    cache.put("a", b"value")
    path = os.path.join(cache.folder, *entries(cache))
    content = open(path, "rb").read()
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 1 << (index % 8)
        with open(path, "wb") as file:
            file.write(changed)
        assert cache.get("a") is None


def test_an_entry_under_another_name_is_damaged(cache):
    cache.put("a", b"of a")
    (first,) = entries(cache)
    cache.put("b", b"of b")
    (second,) = set(entries(cache)) - {first}
    os.replace(os.path.join(cache.folder, first), os.path.join(cache.folder, second))
    assert cache.get("b") is None and cache.get("a") is None


def test_a_symbolic_link_or_a_pipe_in_place_of_an_entry_is_not_followed(cache, tmp_path):
    cache.put("a", b"value")
    path = os.path.join(cache.folder, *entries(cache))
    os.replace(path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path)
    assert cache.get("a") is None
    os.unlink(path)
    os.mkfifo(path)
    assert cache.get("a") is None


def test_what_was_used_longest_ago_goes_first(tmp_path):
    cache = Cache(tmp_path / "cache", size=5000)
    for index, key in enumerate("abcd"):
        cache.put(key, key.encode() * 1000)
        os.utime(os.path.join(cache.folder, cache_module._name(key)), (1000 + index, 1000 + index))
    assert cache.get("a") == b"a" * 1000  # used now
    cache.put("e", b"e" * 2000)
    assert [key for key in "abcde" if cache.get(key) is not None] == ["a", "d", "e"]
    assert sum(os.path.getsize(os.path.join(cache.folder, name)) for name in entries(cache)) <= 5000
    cache.put("huge", b"x" * 5000)
    assert cache.get("huge") is None and cache.get("e") is not None


def test_what_a_killed_process_left_is_removed_after_an_hour(cache):
    cache.put("a", b"1")
    left = [os.path.join(cache.folder, f"{'0' * 64}.{digit * 16}.tmp") for digit in "12"]
    for path in left:
        open(path, "w").close()
    os.utime(left[0], (time.time() - 7200,) * 2)
    cache.put("b", b"2")
    assert [os.path.exists(path) for path in left] == [False, True]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_may_write_to_is_not_used(cache, caplog, mode):
    cache.put("a", b"1")
    os.chmod(cache.folder, mode)
    with caplog.at_level(logging.WARNING, "torchtrt_bridge"):
        assert cache.get("a") is None
        cache.put("b", b"2")
        cache.clear()
    assert caplog.text.count("is not used: others may write") == 1 and f"chmod 700 {cache.folder}" in caplog.text
    assert "others may write" in cache.problem()
    os.chmod(cache.folder, 0o700)
    assert cache.problem() is None and cache.get("a") == b"1" and cache.get("b") is None


def test_a_folder_of_another_user_is_not_used(cache, caplog, monkeypatch):
    cache.put("a", b"1")
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with caplog.at_level(logging.WARNING, "torchtrt_bridge"):
        assert cache.get("a") is None
        cache.put("b", b"2")
    assert f"belongs to another user ({real}; this process is {real + 1})" in caplog.text
    monkeypatch.undo()
    assert cache.get("a") == b"1" and len(entries(cache)) == 1


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none/cache"])
def test_a_folder_that_cannot_be_is_said_once(tmp_path, caplog, place):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / place)
    with caplog.at_level(logging.WARNING, "torchtrt_bridge"):
        cache.put("a", b"1")
        cache.put("a", b"1")
        assert cache.get("a") is None
    assert caplog.text.count("is not used") == 1


def test_the_environment_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    Cache().put("a", b"1")
    assert Cache(tmp_path / "named").get("a") == b"1"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Cache().folder == str(tmp_path / "xdg" / "torchtrt_bridge")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Cache().folder == str(tmp_path / "home" / ".cache" / "torchtrt_bridge")
    Cache().put("a", b"1")
    assert Cache().get("a") == b"1"


@pytest.mark.parametrize("word", ["off", "OFF", " off "])
def test_the_off_switch(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, word)
    cache = Cache()
    cache.put("a", b"1")
    cache.clear()
    assert cache.get("a") is None and list(tmp_path.iterdir()) == [] and "switched off" in cache.problem()


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("2k", 2048), ("500M", 500 << 20), ("2 GiB", 2 << 30), ("0", 0), ("", 1 << 30)]
)
def test_the_size_from_the_environment(monkeypatch, text, size):
    monkeypatch.setenv(SIZE_VARIABLE, text)
    assert Cache("x").size == size


@pytest.mark.parametrize("text", ["much", "-1", "1.5G", "1X", "G"])
def test_a_size_that_is_none(monkeypatch, text):
    monkeypatch.setenv(SIZE_VARIABLE, text)
    with pytest.raises(InvalidOption, match=SIZE_VARIABLE):
        Cache("x")


def _write_many(folder, letter):
    cache = Cache(folder, size=20_000)
    for index in range(60):
        cache.put(f"key {index % 7}", letter.encode() * (1000 + index))
        value = cache.get(f"key {index % 7}")
        assert value is None or (len(set(value)) == 1 and 1000 <= len(value) < 1060)


def test_processes_that_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path / "cache", letter)) for letter in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    cache = Cache(tmp_path / "cache")
    held = [cache.get(f"key {index}") for index in range(7)]
    assert all(value is not None and len(set(value)) == 1 for value in held)
    assert all(cache_module._ENTRY.fullmatch(name) for name in entries(cache))
