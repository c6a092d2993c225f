"""Files of saved modules: written whole or not at all, and read without running anything.

The format is safetensors, written here rather than by its library: one tensor's bytes at a time and straight from
memory, so that saving a 10 GB plan takes no second 10 GB.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import torch

from ..errors import InvalidFile, InvalidOption
from .contents import contents

_METADATA = {"format": "torchtrt_bridge"}
_TEMPORARY = re.compile(r"\.torchtrt_bridge-[0-9a-f]{16}\.tmp")
_AGAIN = "Fetch or copy the file again, or save the module again."
_DTYPES = {  # safetensors' names
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}


def save_file(path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write ``tensors`` to the safetensors file ``path``, beside it first: an older file stays whole until then.

    Raises:
        InvalidOption: a tensor of a dtype that safetensors lacks.
        OSError: the disk is full, the folder is missing or read-only. An older file is as it was.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise InvalidOption(
                f"safetensors has no {tensor.dtype}, which {name!r} is; use torch.save(module.state_dict(), path), or"
                " convert that buffer of the model."
            )

    write_atomically(path, lambda file: file.writelines(_pieces(tensors)))


def load_file(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of a state dict that ``torch.save`` wrote, on the CPU.

    A safetensors file is mapped into memory, so that processes share it and it can grow beyond the memory. While its
    tensors are in use, do not write into it (``cp``, ``torch.save``): :func:`save_file` and ``mv`` put another file in
    its place, which is safe. A file of ``torch.save``, which people do save over, is read.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidFile: it is neither, or it is cut off or damaged.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        start = file.read(9)
    if _TEMPORARY.fullmatch(os.path.basename(name)):
        raise InvalidFile(f"{name} is what an interrupted save left behind. Delete it, and load the file beside it.")
    if start.startswith(b"PK\x03\x04"):
        return _load_torch(name)
    if len(start) == 9 and start.endswith(b"{"):
        return _load_safetensors(name)
    size = os.path.getsize(name)
    raise InvalidFile(
        f"{name} ({size} bytes) is neither a safetensors file nor a state dict that torch.save wrote, or its beginning"
        f" is damaged. Files of save() and of torch.save(module.state_dict(), ...) can be loaded. {_AGAIN}"
    )


def write_atomically(path: str | os.PathLike[str], writer: Callable[[IO[bytes]], Any]) -> None:
    """Let ``writer`` fill a new file, and put it in the place of ``path`` once it is on the disk.

    Whatever happens in between, ``path`` is the old file or the new one, whole. The new one keeps the permissions of
    the old one; through a symbolic link, the file that it points to is replaced.

    Raises:
        OSError: the disk is full, the folder is missing or read-only, ``path`` is a folder or a device.
    """
    target = os.path.realpath(os.fspath(path))
    old = os.stat(target).st_mode if os.path.exists(target) else None
    if old is not None and not stat.S_ISREG(old):
        raise OSError(errno.EINVAL, "a folder or device cannot be replaced by a file", target)
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".torchtrt_bridge-{secrets.token_hex(8)}.tmp")
    with _removed_on_failure(temporary), open(temporary, "xb") as file:
        if old is not None:
            os.fchmod(file.fileno(), stat.S_IMODE(old))
        writer(file)
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, target)
    _sync_folder(folder)


@contextlib.contextmanager
def _removed_on_failure(path: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _sync_folder(folder: str) -> None:
    """Make a rename last; some network file systems cannot, and then it lasts as well as they can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """What :func:`save_file` writes."""
    return b"".join(_pieces(tensors))


def from_bytes(data: memoryview) -> dict[str, torch.Tensor]:
    """The tensors in what :func:`to_bytes` made, which are where ``data`` is: it is not copied.

    Raises:
        InvalidFile: it made something else.
    """
    try:
        begin = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(bytes(data[8:begin]))
        del entries["__metadata__"]
        return {name: _view(data[begin:], **entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InvalidFile(f"These are no tensors that were saved ({_first_line(error)}).") from None


def _view(data: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> torch.Tensor:
    kind = {name: each for each, name in _DTYPES.items()}[dtype]
    begin, end = data_offsets
    if begin == end:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(data[begin:end], dtype=kind).view(shape)


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """What a file of ``tensors`` holds, one tensor's bytes at a time: the largest elements first, so that each tensor
    is aligned where the file is mapped into memory."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    yield _header({name: tensors[name] for name in order})
    yield from (contents(tensors[name]) for name in order)


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """What precedes the data in a safetensors file: the length of a JSON text, and the text, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": _METADATA}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _load_safetensors(name: str) -> dict[str, torch.Tensor]:
    import safetensors

    try:
        with safetensors.safe_open(name, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    except OSError:
        raise
    except Exception as error:
        raise InvalidFile(f"{name} is a damaged safetensors file ({_first_line(error)}). {_AGAIN}") from None


def _load_torch(name: str) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(name, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InvalidFile(
            f"{name} is a file of torch.save that is damaged, or that holds more than tensors ({_first_line(error)})."
            f" Save module.state_dict(), not the module. {_AGAIN}"
        ) from None
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in loaded.items()
    ):
        raise InvalidFile(
            f"{name} holds a {type(loaded).__name__} that is no flat state dict. If it is a checkpoint, load it with"
            " torch.load and give the module's part to load_state_dict()."
        )
    return dict(loaded)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
