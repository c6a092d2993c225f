"""Files: whole or not at all, whatever happens while they are written, and nothing but tensors when they are read."""

import contextlib
import os
import pathlib
import pickle
import re
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import safetensors.torch
import torch
from saved import artifact, plan
from torch import nn

from torchtrt_bridge.errors import InvalidFile, InvalidOption
from torchtrt_bridge.runtime import files
from torchtrt_bridge.runtime.artifact import from_tensors, to_tensors
from torchtrt_bridge.runtime.files import load_file, save_file, write_atomically

ROOT = pathlib.Path(__file__).parents[2]
ALL_DTYPES = {str(dtype).removeprefix("torch."): torch.tensor([0, 1, 1]).to(dtype) for dtype in files._DTYPES}


def same(first, second):
    return set(first) == set(second) and all(
        (first[k].dtype, first[k].shape) == (second[k].dtype, second[k].shape)
        and files.contents(first[k]) == files.contents(second[k])
        for k in first
    )


def child(code, *arguments, **options):
    """Run ``code`` in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options)


def temporaries(folder):
    return [name for name in os.listdir(folder) if name.startswith(".torchtrt_bridge-")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.ttb"


def test_every_dtype_and_shape_comes_back(path):
    tensors = {
        **ALL_DTYPES,
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
        "transposed": torch.randn(3, 5).t(),
        "sliced": torch.arange(20)[::3],
        "shared": ALL_DTYPES["float32"],
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        'odd "name" é': torch.ones(1),
    }
    save_file(path, tensors)
    assert same(load_file(path), tensors)
    assert same(safetensors.torch.load_file(path), tensors)  # it is an ordinary safetensors file
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "torchtrt_bridge"}


def test_nothing_but_tensors_is_needed_for_an_empty_file(path):
    save_file(path, {})
    assert load_file(path) == {}


def test_a_file_of_the_safetensors_library_is_read(path):
    safetensors.torch.save_file({"a": torch.ones(3)}, path)
    assert same(load_file(path), {"a": torch.ones(3)})


def test_bytes_in_memory_are_what_a_file_holds_and_are_not_copied(path):
    tensors = to_tensors(artifact())
    save_file(path, tensors)
    data = memoryview(bytearray(files.to_bytes(tensors)))
    assert bytes(data) == path.read_bytes()
    found = files.from_bytes(data)
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in tensors.items())
    data[-1] ^= 1
    assert any(not torch.equal(found[name], tensor) for name, tensor in tensors.items())
    for damaged in (data[:-1], data[:5], memoryview(b"\x05\0\0\0\0\0\0\0[1,2]"), memoryview(b"")):
        with pytest.raises(InvalidFile):
            files.from_bytes(damaged)


def test_every_tensor_is_aligned_in_the_file(path):
    save_file(
        path, {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(2, dtype=torch.float64), "c": torch.ones(1)}
    )
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in load_file(path).values())


def test_a_dtype_that_safetensors_lacks_is_named(path):
    with pytest.raises(InvalidOption, match=r"complex128, which 'frequencies' is; use torch\.save"):
        save_file(path, {"frequencies": torch.ones(2, dtype=torch.complex128)})
    assert list(path.parent.iterdir()) == []


def test_a_state_dict_of_torch_save_is_read(path):
    state = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()
    torch.save(state, path)
    assert same(load_file(path), dict(state))


def test_an_artifact_goes_through_both_kinds_of_file(path):
    tensors = to_tensors(artifact(plan(1000)))
    save_file(path, tensors)
    first, _ = from_tensors(load_file(path))
    torch.save(tensors, path.with_suffix(".pth"))
    second, _ = from_tensors(load_file(path.with_suffix(".pth")))
    for made in (first, second):
        assert torch.equal(made.segments[0].engine, tensors["engine"])


def test_loading_maps_the_file(path):
    """A tensor of the file is not in memory until something reads it."""
    save_file(path, {"engine": torch.zeros(1 << 24, dtype=torch.uint8)})
    tensors = load_file(path)
    maps = pathlib.Path("/proc/self/maps").read_text()
    assert str(path) in maps and tensors["engine"].numel() == 1 << 24


# -- what is no such file ----------------------------------------------------------------------------------------------


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_file(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        load_file(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"PK\x03\x04",
        b"PK\x03\x04" + b"\x00" * 100,
        b"hello, world" * 10,
        pickle.dumps({"a": 1}),
        pickle.dumps({"a": 1}, protocol=0),
        b"\x08\x00\x00\x00\x00\x00\x00\x00{       ",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        b"\x02\x00\x00\x00\x00\x00\x00\x00{}extra",
        b"<!DOCTYPE html><html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_anything_else_is_an_invalid_file_that_names_the_path(path, content):
    path.write_bytes(content)
    with pytest.raises(InvalidFile, match=re.escape(str(path))):
        load_file(path)


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch hacked",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_never_run(path, legacy, monkeypatch):
    monkeypatch.chdir(path.parent)
    torch.save({"a": Harmful()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InvalidFile):
        load_file(path)
    assert not (path.parent / "hacked").exists()


@pytest.mark.parametrize(
    "content", [{"model": {"a": torch.ones(1)}}, [torch.ones(1)], {1: torch.ones(1)}, torch.ones(1)]
)
def test_a_checkpoint_that_is_no_flat_state_dict_is_refused(path, content):
    torch.save(content, path)
    with pytest.raises(InvalidFile, match="no flat state dict"):
        load_file(path)


def test_a_whole_pickled_module_is_refused_with_advice(path):
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(InvalidFile, match=r"Save module\.state_dict\(\)"):
        load_file(path)


def load(path):
    return from_tensors(load_file(path))[0]


def assert_whole(made, original):
    assert torch.equal(made.segments[0].engine, original.segments[0].engine)
    assert all(torch.equal(a, b) for a, b in zip(made.constants, original.constants))
    assert (made.backend, made.precision, made.provenance) == (
        original.backend,
        original.precision,
        original.provenance,
    )
    assert repr(made.signature) == repr(original.signature)


def test_every_flipped_byte_is_refused_or_does_no_harm(path):
    original = artifact(plan(16))
    save_file(path, to_tensors(original))
    content = path.read_bytes()
    harmless = 0
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 1 << (index % 8)
        path.write_bytes(changed)
        try:
            made = load(path)
        except InvalidFile:
            continue
        harmless += 1
        assert_whole(made, original)
    assert harmless < 60  # the text of the metadata, and padding


def test_every_flipped_byte_of_a_torch_file_is_refused_or_does_no_harm(path):
    original = artifact(plan(16))
    torch.save(to_tensors(original), path)
    content = path.read_bytes()
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 1 << (index % 8)
        path.write_bytes(changed)
        with contextlib.suppress(InvalidFile):
            assert_whole(load(path), original)


@pytest.mark.parametrize("save", [save_file, lambda path, tensors: torch.save(tensors, path)], ids=["ttb", "torch"])
def test_every_truncation_is_refused(path, save):
    save(path, to_tensors(artifact(plan(16))))
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidFile):
            load(path)


def test_what_is_appended_is_refused(path):
    save_file(path, to_tensors(artifact(plan(16))))
    with path.open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(InvalidFile):
        load(path)


# -- whole or not at all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, error):
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == [path.name]


def test_a_failed_rename_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("no rename")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no rename"):
        write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == [path.name]


def test_data_is_on_the_disk_before_the_rename(path, monkeypatch):
    events = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append((f"sync {kind}", os.fstat(descriptor).st_size if kind == "file" else None))
        real_sync(descriptor)

    def replace(*paths):
        events.append(("replace", None))
        real_replace(*paths)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(path, lambda file: file.write(b"12345"))
    assert events == [("sync file", 5), ("replace", None), ("sync folder", None)]


def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_permissions(path):
    old = os.umask(0o027)
    try:
        save_file(path, {"a": torch.ones(1)})
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        save_file(path, {"a": torch.ones(2)})
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(old)


def test_through_a_link_the_file_behind_it_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "model.ttb", tmp_path / "link.ttb"
    target.write_bytes(b"old")
    link.symlink_to(target)
    save_file(link, {"a": torch.ones(1)})
    assert link.is_symlink() and same(load_file(target), {"a": torch.ones(1)})


def test_a_device_or_folder_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="cannot be replaced"):
            write_atomically(tmp_path / name, lambda file: file.write(b"new"))
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_file(tmp_path / "none" / "model.ttb", {"a": torch.ones(1)})


def test_what_was_loaded_stays_whole_when_the_file_is_replaced(path):
    save_file(path, {"a": torch.zeros(100_000)})
    tensors = load_file(path)
    save_file(path, {"a": torch.ones(100_000)})
    assert not tensors["a"].any() and load_file(path)["a"].all()
    save_file(path, tensors)  # onto the very file that the tensors were mapped from
    assert not load_file(path)["a"].any()


def test_torch_save_over_the_file_that_was_loaded(path):
    torch.save({"a": torch.zeros(1_000_000)}, path)
    tensors = load_file(path)
    torch.save({"a": tensors["a"]}, path)
    assert not load_file(path)["a"].any() and not tensors["a"].any()


def test_two_threads_save_to_one_path(path):
    def save(value):
        for _ in range(20):
            save_file(path, {"a": torch.full((1000,), value)})

    threads = [threading.Thread(target=save, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load_file(path)["a"].unique()) == 1 and os.listdir(path.parent) == [path.name]


@contextlib.contextmanager
def tiny_disk(folder, size):
    """A file system of ``size`` bytes, or a limit of that size on files in the child where mounting is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    original = artifact(plan(1000))
    with tiny_disk(folder, 1 << 20) as mounted:
        path = folder / "model.ttb"
        save_file(path, to_tensors(original))
        process = child(
            """
            import resource, signal, sys, torch
            from torchtrt_bridge.runtime.files import save_file
            if sys.argv[2] == "limit":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            try:
                save_file(sys.argv[1], {"a": torch.zeros(1 << 22, dtype=torch.uint8)})
            except OSError as error:
                print(error.errno)
            """,
            path,
            "disk" if mounted else "limit",
        )
        output, errors = process.communicate(timeout=120)
        assert output.split() in ([b"28"], [b"27"]), errors  # ENOSPC, EFBIG
        assert_whole(load(path), original)
        assert os.listdir(folder) == ["model.ttb"]
        del process


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.ttb"
    original = artifact(plan(1000))
    save_file(path, to_tensors(original))
    process = child(
        """
        import sys, time, torch
        from torchtrt_bridge.runtime import files
        real = files.contents
        def slow(tensor):
            print("writing", flush=True)
            time.sleep(0.3)
            return real(tensor)
        files.contents = slow
        files.save_file(sys.argv[1], {str(i): torch.zeros(1000) for i in range(1000)})
        """,
        path,
    )
    for _ in range(3):
        assert process.stdout.readline() == b"writing\n", process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert_whole(load(path), original)
    (left,) = temporaries(tmp_path)
    with pytest.raises(InvalidFile, match="interrupted save"):
        load_file(tmp_path / left)


def test_a_terminal_interrupt_leaves_no_trace(tmp_path):
    path = tmp_path / "model.ttb"
    path.write_bytes(b"old")
    process = child(
        """
        import sys, time
        from torchtrt_bridge.runtime.files import write_atomically
        def write(file):
            file.write(b"new")
            print("writing", flush=True)
            time.sleep(60)
        write_atomically(sys.argv[1], write)
        """,
        path,
    )
    assert process.stdout.readline() == b"writing\n", process.stderr.read()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors and path.read_bytes() == b"old" and temporaries(tmp_path) == []


def test_saving_takes_little_memory_beside_the_tensors(tmp_path):
    process = child(
        """
        import resource, sys, torch
        from torchtrt_bridge.runtime.files import save_file
        size = 200 << 20
        tensors = {"engine": torch.ones(size // 2, dtype=torch.uint8), "weight": torch.ones(size // 8)}
        save_file(sys.argv[1], {"a": torch.ones(1)})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        save_file(sys.argv[1], tensors)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / size)
        """,
        tmp_path / "model.ttb",
    )
    output, errors = process.communicate(timeout=120)
    assert float(output) < 0.2, errors
    assert (tmp_path / "model.ttb").stat().st_size > 200 << 20
