"""What the graph routes share: an engine's tensors, as the Signature has them; a plan's settings and provenance."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..dynamic import shapes_for
from ..errors import InvalidOption
from ..options import BuildOptions
from ..signature import Signature
from .base import Place

#: What TensorRT takes and gives at its edges.
PLAN_DTYPES = "float32 float16 bfloat16 int64 int32 int8 uint8 bool".split()

Shape = tuple[int, ...]


def input_names(signature: Signature) -> list[str]:
    """The engine's input names: the user's own."""
    return [spec.name for spec in signature.inputs]


def output_names(signature: Signature) -> list[str]:
    """The engine's output names: the user's own, told apart from the inputs' and from one another."""
    taken = set(input_names(signature))
    names = []
    for spec in signature.outputs:
        name = spec.name
        while name in taken:
            name = f"{name}_out"
        taken.add(name)
        names.append(name)
    return names


def unknown_dtypes(signature: Signature) -> tuple[str, ...]:
    """A sentence for each input and result whose dtype no plan can have."""
    return tuple(
        f"{spec!r}: TensorRT has no {spec.dtype} inputs or results"
        for spec in (*signature.inputs, *signature.outputs)
        if spec.dtype not in PLAN_DTYPES
    )


def profile(signature: Signature) -> dict[str, tuple[Shape, Shape, Shape]]:
    """The optimization profile. TensorRT's sizes begin at 1; an empty call never reaches it."""
    ranges = [
        shapes_for(signature.inputs, {name: max(1, getattr(dim, which)) for name, dim in signature.dims.items()})
        for which in ("min", "opt", "max")
    ]
    return {
        spec.name: (smallest, usual, largest)
        for spec, smallest, usual, largest in zip(signature.inputs, *ranges)
        if any(isinstance(size, str) for size in spec.shape)
    }


def builder_settings(build: BuildOptions) -> dict[str, Any]:
    """What of ``build`` goes into a :class:`~torchtrt_bridge.trt.request.Request`, by its names there.

    Raises:
        InvalidOption: ``kernel_specialization``, which belongs to the engine's run, where this TensorRT has none.
    """
    from ..trt.targets import installed

    if build.kernel_specialization is not None and not installed().has_runtime_config:
        raise InvalidOption(
            f"kernel_specialization: TensorRT's flavour {installed().name!r} ({installed().version}) chooses its"
            " kernels when it builds; leave it out."
        )
    others = ("kernel_specialization", "minimum_share", "isolate", "torch_tensorrt")
    return {f.name: getattr(build, f.name) for f in dataclasses.fields(build) if f.name not in others}


def plan_provenance(
    flavour: str, version: str, target: str | None, layers: int, build: BuildOptions, place: Place
) -> dict[str, Any]:
    """What a plan is and where it runs, for the manifest (see :mod:`torchtrt_bridge.runtime.fit`)."""
    return {
        "flavour": flavour,
        "tensorrt": version,
        "target": runs_on(flavour, target, build, place),
        "gpu": torch.cuda.get_device_name(place.device) if place.target is None else "",
        "version_compatible": build.version_compatible,
        "tf32": build.tf32,
        "kernel_specialization": build.kernel_specialization,
        "layers": layers,
    }


def runs_on(flavour: str, target: str | None, build: BuildOptions, place: Place) -> str:
    """The GPUs that a plan runs on, for the manifest. RTX plans for no named target run from sm80 on, wherever
    built."""
    if target is not None:
        return target
    if flavour == "tensorrt_rtx" or build.hardware_compatible:
        return "portable"
    major, minor = torch.cuda.get_device_capability(place.device)
    return f"sm{major}{minor}"
