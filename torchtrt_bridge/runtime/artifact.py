"""The saved form: an :class:`Artifact` as a flat dict of tensors, and back.

::

    engine          uint8[n]   the plan or the ONNX model; engine.0, program.1, engine.2, ... where there are segments
    program         uint8[p]   what PyTorch runs, as JSON; its tensors are program.state.NAME and program.const.NAME
    constant.0 ...             buffers and parameters that the model returns as they are
    runtime_cache   uint8[k]   kernels that TensorRT compiled, for each plan (k may be 0)
    source          uint8[s]   optional: the exported program to rebuild from; source.state.NAME, source.const.NAME
    manifest        uint8[m]   what all this is, with a digest of each tensor and of itself (see :mod:`.manifest`)

Reading checks everything before it makes anything: a wrong byte, a missing tensor or another version is an
:class:`InvalidFile` that names the tensor.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ..backends.base import Artifact, Segment, StoredProgram
from ..errors import InvalidFile
from ..origin import Origin
from ..signature import Signature
from ..structure import leaves
from ..version import __version__
from . import manifest, wires
from .contents import contents

_AGAIN = "Fetch or copy the file again, or compile and save the model again."
_PATH = re.compile(r"""(?<![\w.:/])(?:/[^\s/:'"(),;<>]+)+/([^\s/:'"(),;<>]*)""")
_digests = WeakTensorKeyDictionary()  # tensor -> (its version, its entry in the manifest)


def to_tensors(artifact: Artifact, runtime_caches: Sequence[bytes | torch.Tensor] = ()) -> dict[str, torch.Tensor]:
    """``artifact`` as a flat dict of tensors. They are the artifact's own, not copies.

    Args:
        runtime_caches: what TensorRT compiled, for each plan in order; none means empty ones.

    Raises:
        ValueError: there are not as many caches as plans.
    """
    count = len(artifact.segments)
    plans = [index for index, segment in enumerate(artifact.segments) if segment.runtime == "tensorrt"]
    if runtime_caches and len(runtime_caches) != len(plans):
        raise ValueError(f"{len(runtime_caches)} runtime caches for {len(plans)} plans")
    tensors: dict[str, torch.Tensor] = {}
    for index, segment in enumerate(artifact.segments):
        if segment.runtime == "torch":
            assert segment.program is not None
            tensors.update(_program_tensors(_key("program", index, count), segment.program))
        else:
            assert segment.engine is not None
            tensors[_key("engine", index, count)] = segment.engine
    for index, cache in zip(plans, runtime_caches or [b""] * len(plans)):
        tensors[_key("runtime_cache", index, count)] = _uint8(cache)
    tensors.update({f"constant.{index}": constant for index, constant in enumerate(artifact.constants)})
    if artifact.source is not None:
        tensors.update(_program_tensors("source", artifact.source))
    fields = {
        "package": __version__,
        "backend": artifact.backend,
        "precision": artifact.precision,
        "origin": artifact.origin.to_dict(),
        "provenance": artifact.provenance,
        "report": _without_places(artifact.report),
        "signature": artifact.signature.to_dict(),
        "segments": [_segment(segment) for segment in artifact.segments],
        "tensors": {key: _entry(tensor) for key, tensor in tensors.items()},
        **({"results": artifact.results} if artifact.results else {}),
        **({"asked": artifact.asked} if set(artifact.asked) - {"name"} else {}),
    }
    return {**{key: tensor.detach() for key, tensor in tensors.items()}, "manifest": manifest.write(fields)}


def from_tensors(
    tensors: Mapping[str, torch.Tensor], *, intact: bool = False
) -> tuple[Artifact, tuple[torch.Tensor, ...]]:
    """The artifact that ``tensors`` hold, and the runtime cache of each of its plans; all on the CPU.

    Tensors that are on the CPU and contiguous already are taken as they are, not copied. ``intact``: their bytes were
    compared with a digest a moment ago.

    Raises:
        InvalidFile: something is missing, damaged, too much, or of another version of the format.
    """
    if "manifest" not in tensors:
        raise InvalidFile(no_manifest(tensors))
    fields = manifest.read(tensors["manifest"])
    held = _verified(tensors, fields["tensors"], intact)
    count = len(fields["segments"])
    constants = sum(key.startswith("constant.") for key in held)
    segments = []
    caches = []
    used = {f"constant.{index}" for index in range(constants)}
    for index, segment in enumerate(fields["segments"]):
        engine = program = None
        if segment["runtime"] == "torch":
            program = _program(_key("program", index, count), held, used)
        else:
            engine = _bytes_tensor(_key("engine", index, count), held, used)
        if segment["runtime"] == "tensorrt":
            caches.append(_bytes_tensor(_key("runtime_cache", index, count), held, used))
        names = tuple(segment["inputs"]), tuple(segment["outputs"])
        wiring = wires.read(segment["wiring"]) if "wiring" in segment else None
        segments.append(Segment(segment["runtime"], *names, engine=engine, program=program, wiring=wiring))
    source = _program("source", held, used) if "source" in held else None
    if strange := sorted(used ^ set(held)):
        raise InvalidFile(f"The saved module has the tensor {strange[0]!r} out of place. {_AGAIN}")
    signature = Signature.from_dict(fields["signature"])
    ends = len(segments[0].inputs), len(segments[0].outputs)
    if segments[0].wiring is None and ends != (len(signature.inputs), len(signature.outputs)):
        raise InvalidFile(f"The saved module's engine has other inputs or results than its signature. {_AGAIN}")
    returned = [leaf["constant"] for leaf in leaves(signature.result) if "constant" in leaf]
    if any(index >= constants for index in returned):
        raise InvalidFile(f"The saved module returns constant.{max(returned)}, which it does not hold. {_AGAIN}")
    artifact = Artifact(
        segments=tuple(segments),
        signature=signature,
        backend=fields["backend"],
        precision=fields["precision"],
        constants=tuple(held[f"constant.{index}"] for index in range(constants)),
        source=source,
        provenance=fields["provenance"],
        report=fields["report"],
        origin=Origin.from_dict(fields.get("origin", {})),
        results=tuple(fields.get("results", ())),
        asked=fields.get("asked", {}),
    )
    wires.check(artifact)
    return artifact, tuple(caches)


def _segment(segment: Segment) -> dict[str, Any]:
    ends = {"runtime": segment.runtime, "inputs": segment.inputs, "outputs": segment.outputs}
    return ends if segment.wiring is None else {**ends, "wiring": wires.write(segment.wiring)}


def _without_places(value: Any) -> Any:
    """``value`` with the folders of every absolute path in it left out: a reason why a route failed may name files of
    this machine, and a file goes to others."""
    if isinstance(value, str):
        return _PATH.sub(r".../\1", value)
    if isinstance(value, Mapping):
        return {key: _without_places(item) for key, item in value.items()}
    return [_without_places(item) for item in value] if isinstance(value, (list, tuple)) else value


def _key(kind: str, index: int, count: int) -> str:
    return kind if count == 1 else f"{kind}.{index}"


def _program_tensors(key: str, program: StoredProgram) -> dict[str, torch.Tensor]:
    state = {f"{key}.state.{name}": tensor for name, tensor in program.state.items()}
    constants = {f"{key}.const.{name}": tensor for name, tensor in program.constants.items()}
    return {key: _uint8(program.graph), **state, **constants}


def _uint8(data: bytes | torch.Tensor) -> torch.Tensor:
    if isinstance(data, torch.Tensor):
        return data
    if not data:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _entry(tensor: torch.Tensor) -> dict[str, Any]:
    """dtype, shape and digest of a tensor; once for as long as nothing writes to it, for plans are big."""
    version = 0 if tensor.is_inference() else tensor._version
    known = _digests.get(tensor)
    if known is None or known[0] != version:
        dtype, shape = str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
        digest = hashlib.sha256(f"{dtype}{shape}".encode())
        digest.update(contents(tensor))
        known = (version, {"dtype": dtype, "shape": shape, "sha256": digest.hexdigest()})
        _digests[tensor] = known
    return known[1]


def no_manifest(tensors: Mapping[str, Any]) -> str:
    """What ``tensors`` are, where they are no saved module."""
    prefixes = sorted(key.removesuffix("manifest") for key in tensors if key.endswith(".manifest"))
    if prefixes:
        return (
            f"The tensors hold a saved TRTModule under the prefix {prefixes[0]!r}: it was a part of a larger module."
            " Load them into that module, or remove the prefix from the keys."
        )
    found = ", ".join(list(tensors)[:5]) or "nothing"
    return f"There is no tensor 'manifest', so this is no saved TRTModule. It holds {found}."


def _verified(
    tensors: Mapping[str, torch.Tensor], entries: Mapping[str, Any], intact: bool
) -> dict[str, torch.Tensor]:
    """All tensors but the manifest, on the CPU, each seen to be the one that was saved."""
    given = set(tensors) - {"manifest"}
    if missing := sorted(set(entries) - given):
        raise InvalidFile(f"The saved module lacks the tensor {missing[0]!r} ({len(missing)} missing). {_AGAIN}")
    if strange := sorted(map(str, given - set(entries))):
        raise InvalidFile(f"The tensor {strange[0]!r} is no part of the saved module. Remove it, or: {_AGAIN}")
    held = {}
    for key, entry in entries.items():
        tensor = tensors[key]
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
            raise InvalidFile(f"{key!r} is no dense tensor with data. {_AGAIN}")
        found = (str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
        if found != (entry["dtype"], entry["shape"]):
            raise InvalidFile(
                f"The tensor {key!r} is {found[0]}{found[1]}; {entry['dtype']}{entry['shape']} was saved. Something"
                f" converted the saved tensors (.half(), a cast at loading). {_AGAIN}"
            )
        held[key] = tensor.detach().cpu().contiguous()
        if not intact and _entry(held[key])["sha256"] != entry["sha256"]:
            raise InvalidFile(f"The tensor {key!r} does not match its digest: it is damaged. {_AGAIN}")
    return held


def _bytes_tensor(key: str, held: Mapping[str, torch.Tensor], used: set[str]) -> torch.Tensor:
    tensor = held.get(key)
    if tensor is None or tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise InvalidFile(f"The saved module needs a tensor {key!r} of uint8[n]. {_AGAIN}")
    used.add(key)
    return tensor


def _program(key: str, held: Mapping[str, torch.Tensor], used: set[str]) -> StoredProgram:
    graph = _bytes_tensor(key, held, used).numpy().tobytes()
    parts = []
    for kind in ("state", "const"):
        prefix = f"{key}.{kind}."
        part = {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}
        used.update(prefix + name for name in part)
        parts.append(part)
    return StoredProgram(graph, *parts)
