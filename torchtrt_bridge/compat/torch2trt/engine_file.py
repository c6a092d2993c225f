"""An engine that torch2trt, trtexec or anyone else built, as an Artifact: TensorRT says what its tensors are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...backends.base import Artifact, Segment
from ...errors import BackendUnavailable, EngineMismatch, InvalidFile
from ...signature import Dim, Parameter, Signature, TensorSpec
from ...structure import Node
from .flattener import Flattener


def artifact_of(
    plan: torch.Tensor,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    input_flattener: Flattener | None,
    output_flattener: Flattener | None,
    device: torch.device | None,
) -> Artifact:
    """Names that are None are the engine's own, in its order.

    Raises:
        EngineMismatch: there is no GPU, or TensorRT refused the plan: another version, flavour or GPU.
        InvalidFile: the engine has no tensors of the names given.
    """
    if not torch.cuda.is_available() or (device is not None and device.type != "cuda"):
        raise EngineMismatch(
            "An engine that torch2trt built can be read only where it can run: on its GPU, with its TensorRT."
        )
    from ...trt.engine import Engine
    from ...trt.targets import installed

    flavor = installed()
    place = torch.device("cuda", torch.cuda.current_device()) if device is None else device
    try:
        engine = Engine(plan, place)
    except RuntimeError as error:
        raise EngineMismatch(
            f"{error}. {flavor.name} {flavor.version} is in use here; a plan runs only with the version and on the GPU"
            " that it was built for. Build it again with torch2trt()."
        ) from error
    inputs = list(input_names or (binding.name for binding in engine.inputs))
    outputs = list(output_names or (binding.name for binding in engine.outputs))
    bindings = {binding.name: binding for binding in (*engine.inputs, *engine.outputs)}
    unknown = [name for name in (*inputs, *outputs) if name not in bindings]
    if unknown:
        raise InvalidFile(f"The engine has no tensor {unknown[0]!r}; it has {', '.join(bindings)}.")
    dims: dict[str, Dim] = {}
    specs = tuple(_input(engine.engine, bindings[name], dims) for name in inputs)
    arguments = _arguments(input_flattener, len(inputs))
    signature = Signature(
        parameters=tuple(Parameter(name, "POSITIONAL_ONLY") for name in arguments),
        arguments=arguments,
        inputs=specs,
        outputs=tuple(
            TensorSpec(n, _dtype(bindings[n]), tuple("?" if s < 0 else s for s in bindings[n].shape)) for n in outputs
        ),
        result=_result(output_flattener, len(outputs)),
        dims=dims,
    )
    major, minor = torch.cuda.get_device_capability(place)
    return Artifact(
        segments=(Segment("tensorrt", tuple(inputs), tuple(outputs), engine=plan),),
        signature=signature,
        backend="torch2trt",
        precision="unknown",
        provenance={
            "torch": torch.__version__,
            "flavour": flavor.name,
            "tensorrt": flavor.version,
            "target": f"sm{major}{minor}",
            "gpu": torch.cuda.get_device_name(place),
        },
        report={
            "backend": "torch2trt",
            "precision": "unknown",
            "runtime": "tensorrt",
            "where": str(place),
            "notes": ["the engine was built elsewhere and not compared with its model"],
            "verification": [],
        },
    )


def _dtype(binding: Any) -> str:
    return str(binding.dtype).removeprefix("torch.")


def _input(engine: Any, binding: Any, dims: dict[str, Dim]) -> TensorSpec:
    if binding.on_host:
        raise BackendUnavailable(f"The engine reads {binding.name!r} on the host, which torchtrt_bridge does not do.")
    shape: list[int | str] = list(binding.shape)
    if any(size < 0 for size in binding.shape):
        ranges = zip(*engine.get_tensor_profile_shape(binding.name, 0))
        for axis, (low, opt, high) in enumerate(ranges):
            if binding.shape[axis] < 0:
                name = f"{re.sub(r'[^0-9A-Za-z_]', '_', binding.name)}_dim{axis}"
                name = name if name.isidentifier() else f"dim_{name}"
                dims[name] = Dim(low, opt, high, name)
                shape[axis] = name
    return TensorSpec(binding.name, _dtype(binding), tuple(shape))


def _arguments(flattener: Flattener | None, count: int) -> dict[str, Node]:
    """The engine's inputs as the arguments of a call."""
    schema = range(count) if flattener is None else flattener.schema
    if not isinstance(schema, (list, tuple, range)) or (flattener is not None and len(flattener) != count):
        raise InvalidFile(f"The file's input_flattener, {schema!r}, does not fit the engine's {count} inputs.")
    return {f"arg_{i}": _node(child, lambda index: index) for i, child in enumerate(schema)}


def _result(flattener: Flattener | None, count: int) -> Node:
    if flattener is None:
        leaves = [{"leaf": {"output": i}} for i in range(count)]
        return leaves[0] if count == 1 else {"tuple": leaves}
    return _node(flattener.schema, lambda index: {"output": index})


def _node(schema: Any, leaf: Any) -> Node:
    if schema is None:
        return {"value": None}
    if isinstance(schema, int):
        return {"leaf": leaf(schema)}
    if isinstance(schema, Mapping):
        return {"dict": [[key, _node(child, leaf)] for key, child in schema.items()]}
    return {"tuple" if isinstance(schema, tuple) else "list": [_node(child, leaf) for child in schema]}
