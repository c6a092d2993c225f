"""The one folder where this package keeps what it found out at some cost, between processes.

An entry is bytes under a text. Nothing in here is needed: an entry that is missing, damaged or too big is found out
anew, and a folder that cannot be trusted or written is not used, which is said once.

- ``TORCHTRT_BRIDGE_CACHE``: the folder, or ``off``. The default is ``torchtrt_bridge`` in ``$XDG_CACHE_HOME``, else in
  ``~/.cache``.
- ``TORCHTRT_BRIDGE_CACHE_SIZE``: the most that it holds, such as ``500M`` or ``2G`` (default ``1G``). What was used
  longest ago goes first.

The folder is made for its owner alone (0700). One that belongs to somebody else, or that others may write to, is not
used: what it holds decides what this process runs. Entries are written beside and renamed, so that readers need no
lock; writers take one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator

from .digests import digest
from .errors import InvalidOption

VARIABLE = "TORCHTRT_BRIDGE_CACHE"
SIZE_VARIABLE = "TORCHTRT_BRIDGE_CACHE_SIZE"

_log = logging.getLogger("torchtrt_bridge")
_said: set[str] = set()
_MAGIC = b"torchtrt_bridge cache 2\n"
_ENTRY = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.tmp")
_DEFAULT_SIZE = "1G"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_ABANDONED_S = 3600.0  # a temporary file of this age was left by a process that was killed


class Cache:
    """Bytes under texts, in one folder, shared by every process of this user.

    Args:
        folder: None takes it from the environment (see the module's docstring).
        size: most bytes that the folder holds; None takes it from the environment.

    Raises:
        InvalidOption: the environment names a size that is none.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, size: int | None = None):
        self.folder = _folder() if folder is None else os.path.abspath(os.fspath(folder))
        self.size = _size() if size is None else size

    def get(self, key: str) -> memoryview | None:
        """What was put under ``key``; None where nothing was, or where it is damaged (it is removed then)."""
        with self._opened(create=False) as folder:
            if folder is None:
                return None
            name = _name(key)
            try:
                content = _read(name, folder)
            except FileNotFoundError:
                return None
            except OSError as error:
                self._say(f"{name} in {self.folder} cannot be read: {error.strerror}")
                return None
            start = len(_MAGIC) + hashlib.sha256().digest_size
            data = content[start:]  # a view: what is kept may be hundreds of megabytes
            if content[:start] != _MAGIC + _digest(key, data):
                _log.warning("the cache entry %s in %s is damaged; it is removed", name, self.folder)
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                return None
            with contextlib.suppress(OSError):  # the time of last use, which says what goes first
                os.utime(name, dir_fd=folder)
            return data

    def put(self, key: str, data: bytes) -> None:
        """Keep ``data`` under ``key``, and let go of what was used longest ago where the folder is full.

        What is larger than the whole cache is not kept. A full or read-only disk is no error.
        """
        content = _MAGIC + _digest(key, data) + data
        if len(content) > self.size:
            _log.info("%d bytes are not cached: %s is %d", len(data), SIZE_VARIABLE, self.size)
            return
        with self._opened(create=True) as folder:
            if folder is None:
                return
            try:
                with _locked(folder):
                    _write(_name(key), content, folder)
                    self._evict(folder)
            except OSError as error:
                self._say(f"{self.folder} cannot be written: {error.strerror}")

    def clear(self) -> None:
        """Remove every entry; other files in the folder stay."""
        with self._opened(create=False) as folder:
            if folder is None:
                return
            with _locked(folder):
                for name in os.listdir(folder):
                    if _ENTRY.fullmatch(name) or _TEMPORARY.fullmatch(name):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder)

    def problem(self) -> str | None:
        """Why the cache is not in use, as a sentence; None where it is, or could be. Makes nothing."""
        if self.folder is None:
            return f"switched off by {VARIABLE}"
        try:
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"the folder {self.folder} cannot be opened: {error.strerror}"
        try:
            return self._distrust(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _opened(self, create: bool) -> Iterator[int | None]:
        """A descriptor of the folder, seen to be ours; None where there is none to use. Everything goes through it, so
        that another folder put in its place meanwhile changes nothing."""
        if self.folder is None:
            yield None
            return
        try:
            if create:
                os.makedirs(os.path.dirname(self.folder), exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.folder, 0o700)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if create or not isinstance(error, FileNotFoundError):
                self._say(f"the folder {self.folder} cannot be opened or made: {error.strerror}")
            yield None
            return
        try:
            problem = self._distrust(descriptor)
            if problem is not None:
                self._say(problem)
            yield descriptor if problem is None else None
        finally:
            os.close(descriptor)

    def _distrust(self, descriptor: int) -> str | None:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            return (
                f"the folder {self.folder} belongs to another user ({found.st_uid}; this process is {os.geteuid()})."
                f" Name another in {VARIABLE}"
            )
        if stat.S_IMODE(found.st_mode) & 0o022:
            return (
                f"others may write to the folder {self.folder}. chmod 700 {self.folder}, or name another in {VARIABLE}"
            )
        return None

    def _evict(self, folder: int) -> None:
        entries = []
        for name in os.listdir(folder):
            if not _ENTRY.fullmatch(name) and not _TEMPORARY.fullmatch(name):
                continue
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if _ENTRY.fullmatch(name):
                entries.append((found.st_mtime_ns, name, found.st_size))
            elif time.time() - found.st_mtime > _ABANDONED_S:
                os.unlink(name, dir_fd=folder)
        total = sum(size for _, _, size in entries)
        for _, name, size in sorted(entries):
            if total <= self.size:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            total -= size

    def _say(self, problem: str) -> None:
        if self.folder not in _said:
            _said.add(str(self.folder))
            _log.warning("the cache is not used: %s", problem)


def _folder() -> str | None:
    """The folder that the environment names; None where it says ``off``, or where there is no home."""
    named = os.environ.get(VARIABLE, "").strip()
    if named.lower() == "off":
        return None
    if not named:
        base = os.environ.get("XDG_CACHE_HOME", "")
        named = os.path.join(base if os.path.isabs(base) else os.path.join("~", ".cache"), "torchtrt_bridge")
    expanded = os.path.expanduser(named)
    return None if expanded.startswith("~") else os.path.abspath(expanded)


def _size() -> int:
    text = os.environ.get(SIZE_VARIABLE, "").strip() or _DEFAULT_SIZE
    match = re.fullmatch(r"(\d{1,15})\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise InvalidOption(f"{SIZE_VARIABLE}={text!r}: give a number of bytes, or such as '500M' or '2G'.")
    return int(match[1]) * _UNITS[match[2].upper()]


def _name(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _digest(key: str, data: bytes | memoryview) -> bytes:
    """Of the key as well: an entry under another's name is a damaged one."""
    return hashlib.sha256(_name(key).encode() + digest(data)).digest()


def _read(name: str, folder: int) -> memoryview:
    import numpy as np  # not with the module, which works without

    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise OSError(errno.EPERM, "it is no file of this user")
        content = np.empty(found.st_size, np.uint8).data  # a bytearray would be filled with zeros first
        return content[: file.readinto(content)]  # type: ignore[attr-defined]


def _write(name: str, content: bytes, folder: int) -> None:
    temporary = f"{name}.{secrets.token_hex(8)}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


@contextlib.contextmanager
def _locked(folder: int) -> Iterator[None]:
    """One writer at a time, of any process or thread. The lock goes with its process."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open("lock", flags, 0o600, dir_fd=folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
