"""What a compilation's result depends on, as one text: the same text, the same result.

Everything that could change the engine, or the choice between engines, goes in: the captured graph with every argument
of every node, the bytes of every parameter, buffer and constant, sizes, strides and ranges, the options, the versions
of what builds, the GPU, and this package's own code. A text that is too particular costs a build; one that is not
particular enough would give a wrong result, so what cannot be described is never found again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .backends.base import Place
from .capture import CapturedModel
from .code_identity import identity
from .converters import __file__ as _CONVERTERS
from .digests import digest
from .runtime.contents import contents
from .tensor_digests import TensorDigests

_PACKAGES = (
    "torch numpy onnx onnx-ir onnxscript onnxruntime onnxruntime-gpu tensorrt tensorrt-cu12 tensorrt-cu13 tensorrt-rtx"
    " torch-tensorrt torch-tensorrt-rtx torch2trt torchao"
).split()

_MODULES = (
    "torch numpy onnx onnx_ir onnxscript onnxruntime tensorrt tensorrt_rtx torch_tensorrt torch2trt torchao"
    " torchtrt_bridge"
).split()

_SETTINGS = ("TORCHTRT_BRIDGE_TENSORRT", "NVIDIA_TF32_OVERRIDE")


class Indescribable(Exception):
    """The model holds something whose text would not say what it is."""


def fingerprint(
    captured: CapturedModel, place: Place, options: Mapping[str, Any], known: TensorDigests | None = None
) -> str:
    """The text: a digest in hexadecimal.

    Args:
        options: what was asked for, as plain data, dataclasses among it.
        known: the digests of tensors that have one already.

    Raises:
        Indescribable: there is none.
    """
    known = known or TensorDigests()
    state = {**captured.program.state_dict, **captured.program.constants}
    state.update({f"returned.{index}": constant for index, constant in enumerate(captured.constants)})
    document = {
        "graph": _graph(captured.program.graph_module),
        "inputs": _specs(captured.program.graph_signature.input_specs),
        "outputs": _specs(captured.program.graph_signature.output_specs),
        "ranges": sorted((str(symbol), str(span)) for symbol, span in captured.program.range_constraints.items()),
        "signature": captured.signature.to_dict(),
        "tensors": _tensors(state, known),
        "examples": [_tensor(tensor) for tensor in captured.inputs],
        "converters": [_converters(each, known) for _, each in [("", captured), *sorted(captured.routes.items())]],
        "place": [place.device.type, place.target],
        "options": _value(dict(options)),
        "here": _here(place),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=True).encode()).hexdigest()


def _converters(captured: CapturedModel, known: TensorDigests) -> list[Any]:
    """The program for one route, and the forms of converters that a route may take in it. (What an ATen form says is in
    the program.)"""
    calls = []
    for call in captured.calls.values():
        assert call.registration is not None
        forms = [getattr(call.registration, name) for name in ("tensorrt", "onnx", "plugin")]
        described = [form and identity(form, _constant, _MODULES) for form in forms]
        calls.append([call.registration.target.name, call.registration.precision, call.place, described])
    return [_graph(captured.program.graph_module), _tensors(captured.program.constants, known), calls]


def _constant(value: Any) -> Any:
    """A constant of a converter's form."""
    if type(value).__module__.partition(".")[0] == "onnxscript" and hasattr(value, "version"):
        return ["opset", str(value.domain), value.version]
    if value is Ellipsis or isinstance(value, bytes):
        return [type(value).__name__, repr(value)]
    return _value(value)


def _graph(module: GraphModule) -> list[Any]:
    """Every node with its operator, its arguments, what it makes, and the module it came from."""
    lines = []
    for node in module.graph.nodes:
        target: Any = node.target if isinstance(node.target, str) else _operator(node.target)
        if node.op == "get_attr":
            held: Any = functools.reduce(getattr, node.target.split("."), module)
            target = _graph(held) if isinstance(held, GraphModule) else _value(held)
        path = [str(entry[0]) for entry in (node.meta.get("nn_module_stack") or {}).values()]
        made = _value(node.meta.get("val"))
        lines.append([node.op, node.name, target, _value(node.args), _value(node.kwargs), made, path])
    return lines


def _operator(target: Any) -> str:
    if isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return str(target)
    if getattr(target, "__module__", "") in ("_operator", "builtins", "math", "torch", "torch._sym_node"):
        return f"{target.__module__}.{target.__name__}"
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', '?')}"


def _value(value: Any) -> Any:
    """``value`` as JSON that tells 1, 1.0 and True apart, and every float from its neighbour."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float, complex)):
        return [type(value).__name__, value.hex() if type(value) is float else repr(value)]
    if isinstance(value, Node):
        return ["node", value.name]
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return [type(value).__name__, str(value)]
    if isinstance(value, torch.Tensor):
        fake = isinstance(value, torch._subclasses.FakeTensor) or value.device.type == "meta"
        return _tensor(value) if fake else [_tensor(value), _digest(value)]
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return ["torch", str(value)]
    if isinstance(value, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return ["operator", str(value)]
    if isinstance(value, slice):
        return ["slice", _value((value.start, value.stop, value.step))]
    if isinstance(value, (list, tuple, torch.Size)):
        return ["list", [_value(item) for item in value]]
    if isinstance(value, Mapping):
        return ["dict", [[_value(key), _value(item)] for key, item in value.items()]]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(json.dumps(_value(item)) for item in value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return [type(value).__qualname__, _value(fields)]
    if isinstance(value, os.PathLike):
        return ["path", os.fspath(value)]
    if isinstance(value, GraphModule):
        return ["graph", _graph(value)]
    raise Indescribable(f"a {type(value).__module__}.{type(value).__qualname__}")


def _tensor(tensor: torch.Tensor) -> list[Any]:
    if tensor.layout != torch.strided:
        raise Indescribable(f"a tensor of layout {tensor.layout}")
    shape, stride = ([str(size) for size in sizes] for sizes in (tensor.shape, tensor.stride()))
    return [str(tensor.dtype), tensor.device.type, shape, stride]


def _specs(specs: Iterable[Any]) -> list[Any]:
    """What each input or output of a program is."""
    found = []
    for spec in specs:
        name, value = getattr(spec.arg, "name", None), _value(getattr(spec.arg, "value", None))
        kinds = [str(spec.kind), type(spec.arg).__name__, getattr(spec, "persistent", None)]
        found.append([*kinds, name, value, spec.target])
    return found


def _tensors(tensors: Mapping[str, Any], known: TensorDigests) -> list[Any]:
    """Name, form and digest of each."""
    names = sorted(tensors)
    for name in names:
        if type(tensors[name]) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise Indescribable(f"{name}, a {type(tensors[name]).__qualname__}")
    found = known.of([tensors[name] for name in names])
    return [[name, _tensor(tensors[name]), one.hex()] for name, one in zip(names, found, strict=True)]


def _digest(tensor: torch.Tensor) -> str:
    return digest(contents(tensor)).hex()


def _here(place: Place) -> dict[str, Any]:
    """The versions, the GPU and the code that a result depends on."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "settings": {name: os.environ.get(name) for name in _SETTINGS},
        "packages": _versions(),
        "code": _code(),
        "threads": torch.get_num_threads() if not place.needs_plan else None,
    }
    if place.device.type == "cuda":
        properties = torch.cuda.get_device_properties(place.device)
        driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: None)()
        found["gpu"] = [properties.name, properties.major, properties.minor, properties.total_memory, driver]
        found["cuda"] = torch.version.cuda
    else:
        found["processor"] = platform.processor()
    return found


@functools.cache
def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def _code() -> str:
    """A digest of this package's source: another version of it, or an edited one, decides anew."""
    digest = hashlib.sha256()
    for file in (__file__, _CONVERTERS):  # not in one folder where the package is installed editable
        folder = pathlib.Path(file).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
