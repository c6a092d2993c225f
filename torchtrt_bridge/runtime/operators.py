"""The operators that stored programs need besides torch's own, and who registers them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..backends.base import StoredProgram
from ..errors import BackendUnavailable

_OPERATOR = re.compile(rb'"torch\.ops\.(\w+)\.(\w+)\.(\w+)"')
_ALWAYS_THERE = frozenset((
    b"aten", b"prims", b"prim", b"higher_order", b"quantized_decomposed", b"torchtrt_bridge_quantization",
))  # fmt: skip


def needed(programs: Iterable[StoredProgram]) -> dict[str, str]:
    """``{"torchvision::nms": "torchvision"}``: each operator that is not torch's, and the module to import for it;
    ``""`` where that is not known."""
    found: dict[str, str] = {}
    for program in programs:
        for namespace, name, overload in _OPERATOR.findall(program.graph):
            if namespace not in _ALWAYS_THERE:
                full = f"{namespace.decode()}::{name.decode()}"
                suffix = "" if overload == b"default" else f".{overload.decode()}"
                found[full + suffix] = _registered_by(full)
    return dict(sorted(found.items()))


def require(operators: Any) -> None:
    """Raise unless this process has all ``operators``, which :func:`needed` listed. Nothing is imported.

    Raises:
        BackendUnavailable: it names those that are missing, and what to import.
    """
    if not isinstance(operators, Mapping) or not operators:
        return
    registered = frozenset(torch._C._dispatch_get_all_op_names())
    missing = {str(name): str(module) for name, module in operators.items() if name not in registered}
    if not missing:
        return
    imports = " and ".join(sorted({module for module in missing.values() if module}))
    how = f"import {imports}" if imports else "import the package that registers them"
    raise BackendUnavailable(
        f"The saved module calls operators that are not registered here: {', '.join(missing)}. First {how}, then load"
        " again. (Loading imports nothing because a file says so.)"
    )


def _registered_by(name: str) -> str:
    try:
        from torch._library.custom_ops import OPDEFS

        definition = OPDEFS.get(name)
    except ImportError:  # private, and only for a better message
        definition = None
    module = getattr(getattr(definition, "_init_fn", None), "__module__", "")
    if module and module != "__main__":
        return module
    namespace = name.partition("::")[0]
    return namespace if namespace in sys.modules else ""
