"""Writes ``docs/builtin_converters.md``: every built-in converter, and what takes the layers of :mod:`layers`.

    python tests/converters/table.py
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator

import layers
from torchtrt_bridge.converters import form_of
from torchtrt_bridge.converters.sizes import COUNTED

import torchtrt_bridge as ttb
from torchtrt_bridge.capture import capture
from torchtrt_bridge.registry import Registration

OUT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "builtin_converters.md"
_PACKAGE = "torchtrt_bridge.converters."

HEAD = """# Built-in converters

Written by `python tests/converters/table.py`; a test keeps it current. `ttb.converter.list()` is the same as data.

An operator is listed with the forms that its converter has. "Some calls" means that other calls of it are taken by the
route itself, or by none: which, is the file's `ONLY_WHERE`.

"""

LAYERS = """
## The layers that routes lack

What takes each of them, whole, on the ONNX route: `tests/converters/test_built_in_layers_gpu.py` runs all of them on
a GPU with a dynamic batch, `test_layers.py` some without one. Two are not there: non-maximum suppression, for which
TensorRT for RTX has a layer and no kernel ("nms has no runners that implement it"), so that it is PyTorch's in a
model that is cut; packed sequences, whose lengths are read on the host, which torch.export refuses.

| layer | taken by |
| --- | --- |
"""


def main() -> None:
    OUT.write_text(text() + LAYERS + "".join(map(_layer_row, layers.NAMES)))


def text() -> str:
    """The page without the layers, which have to be captured for it."""
    found = [r for r in ttb.converter.list() if r.source == "built-in"]
    families: dict[str, list[Registration]] = {}
    for registration in found:
        families.setdefault(registration.origin.module.removeprefix(_PACKAGE), []).append(registration)
    parts = [HEAD]
    for family in sorted(families):
        own = families[family]
        parts.append(f"## `converters/{family}.py`\n\n{_prose(own[0].reason)}\n\n")
        parts.append("| operator | forms | routes |\n| --- | --- | --- |\n")
        parts += sorted(set(map(_row, own)))
        parts.append("\n")
    counted = ", ".join(f"`{operator}`" for operator in sorted(map(str, COUNTED)))
    parts.append(
        "## `converters/sizes.py`\n\nResults whose size depends on the data, where they are results of the model:"
        f" {counted}. See [hybrid.md](hybrid.md).\n"
    )
    return "".join(parts)


def _row(registration: Registration) -> str:
    forms = ", ".join(registration.forms)
    some = ", some calls" if registration.when is not None else ""
    return f"| `{registration.target}` | {forms}{some} | {', '.join(registration.routes) or 'all'} |\n"


def _prose(reason: str) -> str:
    return f"Without it: {reason[:1].lower()}{reason[1:]}".replace("<", "&lt;").replace("Torch.onnx", "torch.onnx")


def _layer_row(name: str) -> str:
    layer = layers.make(name)
    families = sorted(set(_families(layer)))
    return f"| {name} | {', '.join(f'`{f}.py`' for f in families) or 'the route itself'} |\n"


def _families(layer: layers.Layer) -> Iterator[str]:
    for node in capture(layer.module, layer.inputs).program.graph.nodes:
        form = form_of(node) if node.op == "call_function" else None
        if form is not None:
            yield form.__module__.removeprefix(_PACKAGE)


if __name__ == "__main__":
    sys.exit(main())
