"""``.pt2`` archives of ``torch.export.save``, read without running anything of theirs.

``torch.export.load`` unpickles what an archive says it should, and so runs its code. This reads the parts that are
data: the program's JSON, which :mod:`.runtime.program` checks before torch sees it, and the weights' raw bytes. What is
pickled is refused; the example inputs, which always are, are not read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from .backends.base import StoredProgram
from .errors import InvalidFile

_ELSEWHERE = (
    "Load it with torch.export.load() in a process of your own if you trust it, and give program.module() to"
    " torchtrt_bridge.compile()."
)
_AGAIN = "Save the program again with torch.export.save()."
_LARGEST_JSON = 1 << 30


@dataclasses.dataclass(frozen=True, eq=False)
class Archive:
    """One exported program.

    Args:
        program: its graph and tensors.
        names: the names of ``forward``'s arguments.
        arguments, results: the trees around the flat inputs and results.
        torch_version: of the torch that wrote it.
    """

    program: StoredProgram
    names: tuple[str, ...]
    arguments: Tree
    results: Tree
    torch_version: str


@dataclasses.dataclass(frozen=True)
class Tree:
    """A nest of arguments or results: ``kind`` is ``"leaf"``, ``"tuple"``, ``"list"``, ``"dict"`` or a class's name."""

    kind: str
    keys: tuple[Any, ...] = ()
    children: tuple[Tree, ...] = ()


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a ``.pt2`` archive, by what it holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/archive_format") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return False


def read_archive(path: str | os.PathLike[str], device: str = "cpu") -> Archive:
    """The program in the file ``path``, its tensors on the CPU, its graph for ``device`` (``"cpu"`` or ``"cuda"``).

    Raises:
        InvalidFile: it is damaged, holds pickled objects, holds no program or several, or is of another format.
        FileNotFoundError: there is no such file.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _Reader(name, archive).read(device)
        except InvalidFile:
            raise
        except Exception as error:  # zipfile raises anything on a damaged file, and so does what walks altered JSON
            text = f"{type(error).__name__}: {error}"[:300]
            raise InvalidFile(f"{name} is damaged or was altered ({text}). {_AGAIN}") from None


class _Reader:
    def __init__(self, name: str, archive: zipfile.ZipFile):
        self.name, self.archive = name, archive
        self.entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}

    def read(self, device: str) -> Archive:
        if "archive_format" not in self.entries or self._bytes("archive_format") != b"pt2":
            raise InvalidFile(
                f"{self.name} is no archive of torch.export.save() of torch 2.8 and later. {_ELSEWHERE}"
            )
        models = sorted(entry for entry in self.entries if entry.startswith("models/") and entry.endswith(".json"))
        if len(models) != 1:
            raise InvalidFile(f"{self.name} holds {len(models)} exported programs; one is needed.")
        model = models[0].removeprefix("models/").removesuffix(".json")
        document = self._json(models[0])
        state = self._tensors("weights", f"{model}_weights_config.json")
        constants = self._tensors("constants", f"{model}_constants_config.json")
        call = document["graph_module"]["module_call_graph"][0]["signature"]
        names = call.get("forward_arg_names") or ()
        _place(document, device)
        return Archive(
            program=_stored(document, {**state, **constants}),
            names=tuple(str(entry) for entry in names),
            arguments=_tree(json.loads(call["in_spec"])[1]),
            results=_tree(json.loads(call["out_spec"])[1]),
            torch_version=str(document.get("torch_version", "?"))[:40],
        )

    def _bytes(self, entry: str) -> bytes:
        info = self.entries[entry]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise InvalidFile(f"{self.name}: {entry} is compressed or encrypted, which torch never writes. {_AGAIN}")
        return self.archive.read(info)

    def _json(self, entry: str) -> Any:
        if entry not in self.entries:
            raise InvalidFile(f"{self.name} lacks {entry}: it is incomplete, or of another version. {_ELSEWHERE}")
        if self.entries[entry].file_size > _LARGEST_JSON:
            raise InvalidFile(f"{self.name}: {entry} is larger than any program.")
        try:
            return json.loads(self._bytes(entry))
        except ValueError as error:
            raise InvalidFile(f"{self.name}: {entry} is no JSON ({error}). {_AGAIN}") from None

    def _tensors(self, kind: str, config: str) -> dict[str, torch.Tensor]:
        found = {}
        for name, entry in self._json(f"data/{kind}/{config}")["config"].items():
            if entry["use_pickle"] is not False or entry.get("tensor_meta") is None:
                raise InvalidFile(
                    f"{self.name} holds {name!r} as a pickled object, and unpickling runs what it says. {_ELSEWHERE}"
                )
            found[name] = _tensor(self._bytes(f"data/{kind}/{entry['path_name']}"), entry["tensor_meta"], name)
        return found


def _tensor(data: bytes, meta: Mapping[str, Any], name: str) -> torch.Tensor:
    """The tensor of these bytes. Raises InvalidFile where they are not what ``meta`` says."""
    dtype = _dtypes().get(meta["dtype"])
    numbers = [meta["storage_offset"], *meta["sizes"], *meta["strides"]]
    sizes = [number["as_int"] for number in numbers]
    if dtype is None or not all(type(size) is int and 0 <= size < 2**48 for size in sizes):
        raise InvalidFile(f"The weight {name!r} has no dtype or sizes that are known. {_AGAIN}")
    offset, rank = sizes[0], len(meta["sizes"])
    shape, strides = sizes[1 : 1 + rank], sizes[1 + rank :]
    if len(strides) != rank:
        raise InvalidFile(f"The weight {name!r} has {rank} sizes and {len(strides)} strides. {_AGAIN}")
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    # the elements too, not the last one alone: a stride of 0 would make a huge tensor of a few bytes
    if max(last + 1, math.prod(shape)) * dtype.itemsize > len(data) or len(data) % dtype.itemsize:
        raise InvalidFile(f"The weight {name!r} is {len(data)} bytes, too few for {shape}. {_AGAIN}")
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    return flat.as_strided(shape, strides, offset).contiguous()


def _dtypes() -> dict[int, torch.dtype]:
    from torch._export.serde.schema import ScalarType

    names = {
        "DOUBLE": "float64",
        "FLOAT": "float32",
        "HALF": "float16",
        "LONG": "int64",
        "INT": "int32",
        "SHORT": "int16",
        "CHAR": "int8",
        "BYTE": "uint8",
    }
    found = {}
    for member in ScalarType:
        dtype = getattr(torch, names.get(member.name, member.name.lower()), None)
        if isinstance(dtype, torch.dtype):
            found[int(member)] = dtype
    return found


def _stored(document: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> StoredProgram:
    """The program as :mod:`.runtime.program` takes it: with those tensors alone that the graph is given."""
    wanted: dict[str, None] = {}
    held: dict[str, None] = {}
    for spec in document["graph_module"]["signature"]["input_specs"]:
        for kind, value in spec.items():
            if kind == "parameter":
                wanted[value["parameter_name"]] = None
            elif kind == "buffer":
                (wanted if value["persistent"] else held)[value["buffer_name"]] = None
            elif kind == "tensor_constant":
                held[value["tensor_constant_name"]] = None
    for name in (*wanted, *held):
        if name not in tensors:
            raise InvalidFile(f"The program takes the tensor {name!r}, which the archive does not hold. {_AGAIN}")
    graph = json.dumps(document, separators=(",", ":")).encode()
    return StoredProgram(graph, {n: tensors[n] for n in wanted}, {n: tensors[n] for n in held})


def _place(value: Any, device: str) -> None:
    """Write ``device`` over every GPU or CPU that the program names, in place: it runs wherever it is wanted."""
    if isinstance(value, dict):
        if set(value) == {"type", "index"} and value["type"] in ("cpu", "cuda"):
            value["type"], value["index"] = device, None
        for item in value.values():
            _place(item, device)
    elif isinstance(value, list):
        for item in value:
            _place(item, device)


def _tree(data: Any, depth: int = 0) -> Tree:
    """A tree as torch's pytree writes it. Nothing is looked up: a class that it names is a name."""
    if depth > 50:
        raise InvalidFile("The program's arguments or results are nested too deep.")
    kind, children = data["type"], tuple(_tree(child, depth + 1) for child in data["children_spec"])
    if kind is None:
        return Tree("leaf")
    known = {"builtins.tuple": "tuple", "builtins.list": "list", "builtins.dict": "dict"}
    known["collections.OrderedDict"] = "dict"
    if known.get(kind) == "dict":
        keys = json.loads(data["context"])
        if type(keys) is not list or len(keys) != len(children) or not all(type(key) in (str, int) for key in keys):
            raise InvalidFile("The program's arguments or results have keys that are no texts or numbers.")
        return Tree("dict", tuple(keys), children)
    return Tree(known.get(kind, str(kind)[:200]), (), children)
