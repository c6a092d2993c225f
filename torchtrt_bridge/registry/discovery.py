"""Converters that come with installed packages: the entry point group ``torchtrt_bridge.converters``.

An entry point names a module (``my_kernels = my_package.converters``); importing it registers what is in it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings

from ..errors import ConvertersMissing

GROUP = "torchtrt_bridge.converters"


def discover() -> None:
    """Import what the installed packages name, and the built-in converters that register themselves. A package that
    fails is left out, with a warning: it must not cost those who do not need it."""
    from ..converters import register

    register()
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else "?"
            warnings.warn(
                f"The converters of the package {package!r} are missing: its entry point {entry.name!r} ({entry.value})"
                f" failed with {type(error).__name__}: {error}",
                ConvertersMissing,
                stacklevel=2,
            )


def source_of(module: str) -> str:
    """Who registers from ``module``: ``"built-in"``, ``"user"``, or the distribution whose entry point it is of."""
    top = module.partition(".")[0]
    if top == __name__.partition(".")[0]:
        return "built-in"
    return _distributions().get(top, "user")


@functools.cache
def _distributions() -> dict[str, str]:
    """The distribution of each package that an entry point names."""
    entries = importlib.metadata.entry_points(group=GROUP)
    return {entry.module.partition(".")[0]: entry.dist.name for entry in entries if entry.dist is not None}
