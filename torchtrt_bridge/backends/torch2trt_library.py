"""The user's installed torch2trt as a library: imported, and used, with a ``tensorrt`` that answers what it asks.

torch2trt does ``import tensorrt``, and names what TensorRT 11 and RTX no longer have. While it is imported, and while
it is used, ``sys.modules`` holds :mod:`.torch2trt_tensorrt`'s stand-in under that name, and torch2trt under its own;
before and after, what was there. Its files are not touched. Where the user has imported torch2trt already, that one is
used, with the converters registered in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from ..errors import BackendUnavailable
from .torch2trt_tensorrt import stand_in

NAME = "torch2trt"
INSTALL = "pip install git+https://github.com/NVIDIA-AI-IOT/torch2trt (it is in no package index)"
_NEEDED = ("CONVERTERS", "ConversionContext", "attach_converter", "tensorrt_converter")
_lock = threading.RLock()


@dataclasses.dataclass(frozen=True, eq=False)
class Library:
    """torch2trt. ``modules`` are its modules by full name; ``module`` is the one with the tracer."""

    modules: Mapping[str, ModuleType]

    @property
    def module(self) -> ModuleType:
        return self.modules[f"{NAME}.{NAME}"]

    @property
    def version(self) -> str:
        """As its package says, or "unknown"."""
        import importlib.metadata

        try:
            return importlib.metadata.version(NAME)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"

    @staticmethod
    def missing() -> str | None:
        """Why torch2trt cannot be used here; None if it can."""
        try:
            with Library.open():
                return None
        except BackendUnavailable as error:
            return str(error)

    @staticmethod
    @contextlib.contextmanager
    def open() -> Iterator[Library]:
        """The library, for this thread alone until the block ends.

        Raises:
            BackendUnavailable: it is not installed or does not import, or there is no TensorRT.
        """
        trt = stand_in()
        with _lock, _instead({"tensorrt": trt}):
            theirs = _imported_by_user()
            if theirs is not None:
                yield Library(theirs)
                return
            library = _load()
            with _instead(library.modules):
                yield library


_loaded: list[Library] = []


def _load() -> Library:
    """Import torch2trt into a place of its own, once."""
    if _loaded:
        return _loaded[0]
    with _instead({}):
        spec = importlib.util.find_spec(NAME)
        if spec is None:
            raise BackendUnavailable(f"torch2trt is not installed: {INSTALL}.")
        if spec.origin is None:  # a checkout in the current folder imports as an empty package
            folders = ", ".join(spec.submodule_search_locations or ())
            raise BackendUnavailable(f"torch2trt is not installed, there is only a folder {folders}: {INSTALL}.")
        try:
            importlib.import_module(f"{NAME}.{NAME}")
        except Exception as error:  # a package for other versions of torch or TensorRT raises anything
            raise BackendUnavailable(
                f"torch2trt is installed, but does not import: {type(error).__name__}: {error}. Install the newest:"
                f" {INSTALL}."
            ) from error
        modules = {name: module for name, module in sys.modules.items() if _is_ours(name)}
        lacking = [name for name in _NEEDED if not hasattr(modules[f"{NAME}.{NAME}"], name)]
        if lacking:
            raise BackendUnavailable(
                f"torch2trt is installed without {', '.join(lacking)}: another version than this package knows."
                f" Install the newest: {INSTALL}."
            )
        _loaded.append(Library(modules))
    return _loaded[0]


def _is_ours(name: str) -> bool:
    return name == NAME or name.startswith(f"{NAME}.")


def _imported_by_user() -> dict[str, ModuleType] | None:
    """The user's own import of torch2trt; compat.torch2trt under that name is none."""
    modules = {name: module for name, module in sys.modules.items() if _is_ours(name)}
    tracer: Any = modules.get(f"{NAME}.{NAME}")
    return modules if all(name in getattr(tracer, "__dict__", {}) for name in _NEEDED) else None


@contextlib.contextmanager
def _instead(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """``modules`` in ``sys.modules``, in place of those that are there under torch2trt's names or theirs."""

    def names() -> list[str]:
        return [name for name in sys.modules if name in modules or (_is_ours(name) and "tensorrt" not in modules)]

    before = {name: sys.modules[name] for name in names()}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names():
            del sys.modules[name]
        sys.modules.update(before)
