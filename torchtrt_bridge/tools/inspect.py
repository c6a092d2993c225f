"""ttb.inspect(): what a file holds. No engine is loaded, no GPU and no TensorRT is needed, nothing is unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidFile

_MIB = 2.0**20
_PLANS = {b"vtrt": "a plan of TensorRT for RTX", b"ptrt": "a plan of TensorRT"}


@dataclasses.dataclass(frozen=True)
class FileContents:
    """What :func:`inspect` found. Prints as a table, in notebooks too.

    Args:
        path: the file.
        kind: ``"saved module"``, ``"state dict"``, ``"pickled module"``, ``"plan"``, ``"onnx"`` or
            ``"exported program"``.
        size: of the file, in bytes.
        facts: what there is to say, as plain data by name.
    """

    path: str
    kind: str
    size: int
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**dataclasses.asdict(self), "facts": dict(self.facts)}

    def rows(self) -> list[tuple[str, str]]:
        """Name and text of each fact; a list has a row for each of its items."""
        found = [("file", self.path), ("kind", self.kind), ("size", _size(self.size))]
        for name, value in self.facts.items():
            items = value if isinstance(value, list) else [value]
            if isinstance(value, Mapping):
                items = [f"{key}: {item}" for key, item in value.items()]
            found += [(name if not index else "", _text(item)) for index, item in enumerate(items)]
        return found

    def __repr__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self.rows()
        )
        return f"<table>{rows}</table>"


def inspect(path: str | os.PathLike[str]) -> FileContents:
    """What the file ``path`` holds: a saved module (safetensors, or a state dict by ``torch.save``), a bare plan, an
    ONNX model or an exported program.

    A saved module's digests are checked; its engine is not loaded.

    Raises:
        InvalidFile: it is damaged, or of no kind that is known.
        FileNotFoundError: there is no such file.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        start = file.read(16)
    size = os.path.getsize(name)
    if start[:4] in _PLANS:
        return FileContents(name, "plan", size, _plan(name, start))
    from ..archive import is_archive

    if is_archive(name):
        return FileContents(name, "exported program", size, _program(name))
    if start.startswith(b"PK\x03\x04") or start[8:9] == b"{":
        kind, facts = _tensors(name)
        return FileContents(name, kind, size, facts)
    try:
        return FileContents(name, "onnx", size, _onnx(name))
    except ImportError as error:
        raise InvalidFile(f"{name} may be an ONNX model, and {error}: pip install onnx") from None
    except InvalidFile:
        raise InvalidFile(
            f"{name} ({size} bytes) is no saved module, plan, ONNX model or exported program, or it is damaged."
        ) from None


def _plan(name: str, start: bytes) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(name, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "what": _PLANS[start[:4]],
        "sha256": digest.hexdigest(),
        "note": "a bare plan says no more: its tensors, versions and GPU are known to TensorRT alone, which loads it",
    }


def _tensors(name: str) -> tuple[str, dict[str, Any]]:
    """A file of tensors: saved modules in it, or else what it holds."""
    from ..runtime.files import load_file

    if zipfile.is_zipfile(name) and (pickled := _pickled_module(name)):
        return "pickled module", pickled
    tensors = load_file(name)
    prefixes = sorted(key.removesuffix("manifest") for key in tensors if key == "manifest" or key.endswith(".manifest"))
    modules: dict[str, dict[str, Any]] = {}
    for prefix in prefixes:
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        modules[prefix] = _module(own)
    if set(modules) == {""}:
        return "saved module", modules[""]
    shapes = {key: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for key, t in tensors.items()}
    facts: dict[str, Any] = {}
    for prefix, found in modules.items():
        facts[f"compiled module {prefix.rstrip('.')!r}"] = found
        shapes = {key: text for key, text in shapes.items() if not key.startswith(prefix)}
    if not modules:
        facts["note"] = "no compiled module: its manifest is missing"
    return "state dict", {**facts, "tensors": dict(list(shapes.items())[:100]), "number of tensors": len(tensors)}


def _pickled_module(name: str) -> dict[str, Any] | None:
    """A whole module by torch.save(): it is named, and not loaded, for that would load its engine."""
    with zipfile.ZipFile(name) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
        if not entries or entries[0].file_size > 1 << 26:
            return None
        text = archive.read(entries[0])
    if b"torchtrt_bridge.runtime.module\nTRTModule" not in text:
        return None
    return {"note": "a whole module by torch.save(); torch.load() it, and save its state dict to see more here"}


def _module(tensors: Mapping[str, Any]) -> dict[str, Any]:
    from ..runtime.artifact import from_tensors

    artifact, caches = from_tensors(tensors)
    made = artifact.provenance
    facts: dict[str, Any] = {
        "digests": "right",
        "route": artifact.backend,
        "precision": artifact.precision,
        "inputs": [repr(spec) for spec in artifact.signature.inputs],
        "results": [repr(spec) for spec in artifact.signature.outputs],
    }
    if artifact.signature.dims:
        dims = artifact.signature.dims.items()
        facts["dims"] = [f"{name}: {d.min} to {d.max}, tuned for {d.opt}" for name, d in dims]
    segments = []
    for segment in artifact.segments:
        held = [segment.engine] if segment.engine is not None else []
        if segment.program is not None:
            held += [*segment.program.state.values(), *segment.program.constants.values()]
        segments.append(f"{segment.runtime}, {_size(sum(tensor.nbytes for tensor in held))}")
    facts["segments"] = segments
    facts["kernels kept"] = _size(sum(cache.nbytes for cache in caches))
    facts["program kept to rebuild from"] = "yes" if artifact.source is not None else "no"
    facts["made with"] = {key: value for key, value in made.items() if value not in (None, "", {}, [])}
    notes = artifact.report.get("notes", [])
    if isinstance(notes, list) and notes:
        facts["notes"] = [str(note) for note in notes]
    return facts


def _onnx(name: str) -> dict[str, Any]:
    from ..onnx_file import OnnxFile

    file = OnnxFile.read(name)
    return {
        "opset": file.opset,
        "made with": file.producer or "unknown",
        "precision": file.precision,
        "inputs": [repr(spec) for spec in file.inputs],
        "results": [repr(spec) for spec in file.outputs],
        "nodes": sum(file.operators.values()),
        "operators": dict(file.operators),
    }


def _program(name: str) -> dict[str, Any]:
    """From the program's JSON as it stands: it is read, and not made into a program."""
    from ..archive import read_archive

    archive = read_archive(name)
    document = json.loads(archive.program.graph)
    graph = document["graph_module"]["graph"]
    operators: dict[str, int] = {}
    for node in graph["nodes"]:
        target = str(node.get("target"))[:200].removeprefix("torch.ops.")
        operators[target] = operators.get(target, 0) + 1
    tensors = (*archive.program.state.values(), *archive.program.constants.values())
    ranges = document.get("range_constraints", {}).items()
    return {
        "made with": f"torch {archive.torch_version}",
        "arguments": ", ".join(archive.names) or "unknown",
        "sizes": [f"{symbol}: {span.get('min_val')} to {span.get('max_val')}" for symbol, span in ranges],
        "weights": f"{len(tensors)} tensors, {_size(sum(tensor.nbytes for tensor in tensors))}",
        "nodes": len(graph["nodes"]),
        "operators": dict(sorted(operators.items(), key=lambda item: -item[1])),
    }


def _text(value: Any) -> str:
    return ", ".join(f"{key}: {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)


def _size(size: float) -> str:
    return f"{size / _MIB:.1f} MiB" if size >= _MIB else f"{size / 1024:.1f} KiB" if size >= 1024 else f"{size} bytes"
