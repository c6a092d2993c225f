"""The manifest of a saved module: canonical JSON that describes every other tensor, and itself.

It is written compact and with sorted keys, and read only if writing it again gives the same bytes; so no byte of it can
change unnoticed. ``digest`` is the SHA-256 of the text without that field. Digests guard against accident, not against
intent: whoever can change a file can change its digests too.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import InvalidFile

FORMAT = "torchtrt_bridge"
VERSION = 1
RUNTIMES = ("tensorrt", "onnxruntime", "torch")
_FIELDS = {
    "format": str,
    "version": int,
    "package": str,
    "backend": str,
    "precision": str,
    "provenance": dict,
    "report": dict,
    "signature": dict,
    "segments": list,
    "tensors": dict,
    "digest": str,
}
_OPTIONAL = {"origin": dict, "results": list, "asked": dict}  # files of earlier versions, or of one segment, lack them
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "Fetch or copy the file again, or compile and save the model again."


def write(fields: Mapping[str, Any]) -> torch.Tensor:
    """The manifest of ``fields``, with format, version and digest, as uint8[n].

    Raises:
        TypeError: a value that is no plain data; the message says where it stands.
    """
    plain = _plain({"format": FORMAT, "version": VERSION, **fields}, "manifest")
    plain["digest"] = _digest(plain)
    return torch.frombuffer(bytearray(_canonical(plain)), dtype=torch.uint8)


def read(tensor: torch.Tensor) -> dict[str, Any]:
    """The fields of a manifest, each of its right type.

    Raises:
        InvalidFile: it is damaged, of another version of the format, or no manifest.
    """
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise InvalidFile(
            f"The tensor 'manifest' is {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}, where uint8[n]"
            f" was saved. Something converted the saved tensors. {_AGAIN}"
        )
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise InvalidFile("The tensor 'manifest' is no dense tensor with data: it was loaded with map_location='meta'?")
    text = tensor.detach().cpu().contiguous().numpy().tobytes()
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"The tensor 'manifest' is no JSON text ({type(error).__name__}). {_AGAIN}") from None
    if type(data) is not dict or data.get("format") != FORMAT:
        found = repr(data.get("format"))[:80] if type(data) is dict else type(data).__name__
        raise InvalidFile(f"The manifest is of the format {found}, not {FORMAT!r}: this is no saved TRTModule.")
    _check_version(data)
    try:
        unchanged = _canonical(data) == text and data.get("digest") == _digest(data)
    except (ValueError, RecursionError):
        unchanged = False
    if not unchanged:
        raise InvalidFile(f"The manifest does not match its digest: the saved module is damaged. {_AGAIN}")
    _check_fields(data)
    try:
        return {**data, "provenance": _restored(data["provenance"]), "report": _restored(data["report"])}
    except RecursionError:
        raise _wrong("its report, which is nested too deep") from None


def _check_version(data: Mapping[str, Any]) -> None:
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise InvalidFile(f"The manifest has the format version {str(version)[:40]!r}, which is none. {_AGAIN}")
    package = repr(data.get("package"))[:40]
    if version > VERSION:
        raise InvalidFile(
            f"The module was saved in format version {version} (torchtrt_bridge {package}); this torchtrt_bridge reads"
            f" version {VERSION}. Update it (pip install -U torchtrt_bridge), or save the module again with this one."
        )
    if version < VERSION:
        raise InvalidFile(
            f"The module was saved in format version {version} (torchtrt_bridge {package}); this torchtrt_bridge reads"
            f" version {VERSION} only. Compile and save the model again."
        )


def _check_fields(data: Mapping[str, Any]) -> None:
    if strange := set(_FIELDS) ^ (set(data) - set(_OPTIONAL)):
        raise _wrong(f"the fields {', '.join(sorted(strange))[:200]}")
    for name, cls in {**_FIELDS, **{name: cls for name, cls in _OPTIONAL.items() if name in data}}.items():
        if type(data[name]) is not cls:
            raise _wrong(f"{name}, a {type(data[name]).__name__}")
    if not data["segments"]:
        raise _wrong("segments, which are none")
    for segment in data["segments"]:
        if type(segment) is not dict or set(segment) - {"wiring"} != {"runtime", "inputs", "outputs"}:
            raise _wrong("a segment")
        wires = (segment["inputs"], segment["outputs"])
        if segment["runtime"] not in RUNTIMES or not all(type(w) is list and all(map(_is_text, w)) for w in wires):
            raise _wrong("a segment's runtime, inputs or outputs")
    for name, entry in data["tensors"].items():
        if type(entry) is not dict or set(entry) != {"dtype", "shape", "sha256"}:
            raise _wrong(f"the tensor {name!r}")
        shape, dtype, digest = entry["shape"], entry["dtype"], entry["sha256"]
        if type(shape) is not list or not all(type(size) is int and size >= 0 for size in shape):
            raise _wrong(f"the shape of {name!r}")
        if not _is_text(dtype) or not isinstance(vars(torch).get(dtype), torch.dtype):
            raise _wrong(f"the dtype of {name!r}")
        if not _is_text(digest) or not _SHA256.fullmatch(digest):
            raise _wrong(f"the digest of {name!r}")


def _is_text(value: Any) -> bool:
    return type(value) is str


def _wrong(what: str) -> InvalidFile:
    return InvalidFile(f"The manifest is wrong in {what}. {_AGAIN}")


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({key: value for key, value in data.items() if key != "digest"})).hexdigest()


def _plain(value: Any, where: str) -> Any:
    """``value`` as JSON has it; infinities and NaN, which JSON lacks, as ``{"float": "inf"}``."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; keys of a manifest are texts")
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}.{index}") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}; a manifest holds plain data")


def _restored(value: Any) -> Any:
    """What :func:`_plain` was given, tuples as lists."""
    if type(value) is list:
        return [_restored(item) for item in value]
    if type(value) is not dict:
        return value
    if set(value) == {"float"} and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    return {key: _restored(item) for key, item in value.items()}


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
