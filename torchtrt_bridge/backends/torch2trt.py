"""The torch2trt route: the eager model -> the converters of the user's installed torch2trt -> TensorRT's builder.

Whole models only: a converter answers for a function of torch or a module, which a captured graph no longer has. It
makes plans only, so it has nothing for the CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..capture import CapturedModel
from ..errors import ConversionFailed
from ..export_lock import export_lock
from ..layer_forms import summary
from ..options import BuildOptions
from ..precision import Precision
from ..quantization.graph import is_quantized
from ..reproducible import reproducible
from ..signature import Signature
from ..structure import describe, leaves, rebuild
from .base import Artifact, Place, Segment, Support
from .interface import builder_settings, input_names, output_names, plan_provenance, profile, unknown_dtypes


class Torch2TrtBackend:
    """See the module's docstring."""

    name = "torch2trt"

    def supports(self, captured: CapturedModel, place: Place) -> Support:
        """Whether torch2trt is here, and what is wanted is a plan of a whole eager model."""
        from .torch2trt_library import Library

        if not place.needs_plan:
            return Support(self.name, False, ("it makes TensorRT plans only, which the CPU does not run",))
        if captured.model is None:
            return Support(self.name, False, ("it traces the eager model, and only its captured program is here",))
        if is_quantized(captured.program):
            return Support(self.name, False, ("it traces the eager model, and the quantization is in the graph",))
        reasons = [*unknown_dtypes(captured.signature)]
        missing = Library.missing()
        reasons += [missing] if missing is not None else []
        return Support(self.name, not reasons, tuple(reasons), missing=missing is not None)

    def convert(
        self,
        captured: CapturedModel,
        precision: Precision,
        build: BuildOptions,
        place: Place,
        progress: Callable[[str, float], None],
    ) -> Artifact:
        """See :meth:`.base.Backend.convert`."""
        from ..trt.build import build as build_plan
        from ..trt.request import Request

        if len(precision.names) > 1:
            raise ConversionFailed(
                f"torch2trt writes one precision into the whole model, and layers were asked to have their own"
                f" ({precision}). Leave those out, or let backend='onnx' or 'torch_tensorrt' compile it."
            )
        settings = builder_settings(build)
        maker = _Maker(captured, precision)
        with torch.cuda.device(place.device) if place.device.type == "cuda" else contextlib.nullcontext():
            plan = build_plan(
                Request(
                    fill=maker,
                    profile=profile(captured.signature),
                    target=None if place.target in (None, "portable") else place.target,
                    **settings,
                ),
                progress=progress,
            )
        if place.target is not None:
            maker.notes.append("torch2trt's converters ignore some arguments of torch's functions: compare the results")
        signature = captured.signature
        engine = torch.frombuffer(plan.data, dtype=torch.uint8)
        names = tuple(input_names(signature)), tuple(output_names(signature))
        return Artifact(
            segments=(Segment("tensorrt", *names, engine=engine),),
            signature=signature,
            backend=self.name,
            precision=precision.name,
            constants=captured.constants,
            provenance={
                "torch": torch.__version__,
                "torch2trt": maker.version,
                **plan_provenance(plan.flavor, plan.version, plan.target, plan.num_layers, build, place),
            },
            report={
                "kept_fp32": {},
                "notes": maker.notes,
                "work_rows": [dataclasses.asdict(item) for item in plan.work],
            },
        )


class _Maker:
    """Fills TensorRT's network: what a build request takes in the place of an ONNX model."""

    def __init__(self, captured: CapturedModel, precision: Precision):
        self._captured = captured
        self._precision = precision
        self.version = "unknown"
        self.notes: list[str] = []

    def __call__(self, trt: Any, network: Any) -> Any:
        """Returns what must live until the plan is there."""
        from ..trt.targets import installed
        from .torch2trt_forms import Forms
        from .torch2trt_library import Library
        from .torch2trt_network import Network
        from .torch2trt_tracing import trace

        captured, signature = self._captured, self._captured.signature
        assert captured.model is not None
        if captured.device.type == "cuda":
            torch.cuda.synchronize(captured.device)  # this is another thread, whose stream is not the caller's
        filled = Network(trt, network, self._precision.name)
        forms = Forms(captured.calls.values(), installed(), network)
        inputs = [
            (spec.name, example, tuple(-1 if isinstance(size, str) else size for size in spec.shape))
            for spec, example in zip(signature.inputs, captured.inputs)
        ]
        with export_lock, Library.open() as library, reproducible(captured.device):
            self.version = library.version
            run = functools.partial(_call, signature)
            results = trace(library, filled, captured.model, run, inputs, forms)
        for (tensor, example), name, spec in zip(results, output_names(signature), signature.outputs):
            _mark(trt, network, tensor, example.dtype, name, spec)
        if self._precision.name != "fp32":
            what = " and ".join(f"{kind}s" for kind in sorted(filled.lowered)) or "nothing"
            self.notes.append(f"torch2trt's layers: {what} in {self._precision}, the rest in the model's own dtype")
        self.notes += summary(forms.made)
        return filled, forms


def _call(signature: Signature, model: nn.Module, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The model's flat results, in the order of the signature's outputs. ``tensors`` may be written to."""
    arguments = {name: rebuild(node, lambda index: tensors[index]) for name, node in signature.arguments.items()}
    bound = inspect.BoundArguments(inspect.signature(model.forward), arguments)  # type: ignore[arg-type]
    value = model(*bound.args, **bound.kwargs)
    found: list[torch.Tensor] = []

    def leaf(_: str, item: Any) -> dict[str, Any] | None:
        if not isinstance(item, torch.Tensor):
            return None
        found.append(item)
        return {}

    describe(value, leaf)
    payloads = [payload for payload in leaves(signature.result) if "size" not in payload]
    outputs = {p["output"]: tensor for p, tensor in zip(payloads, found, strict=True) if "output" in p}
    outputs.update({output: tensors[index] for index, output in signature.writes})
    return [outputs[index] for index in range(len(signature.outputs))]


def _mark(trt: Any, network: Any, tensor: Any, dtype: torch.dtype, name: str, spec: Any) -> None:
    """Make ``tensor`` a result of the network. It may be another's too, or an input: each gets a layer of its own."""
    try:
        shape = tuple(tensor.shape)
    except ValueError:
        raise ConversionFailed(f"torch2trt's layers for the result {name!r} are impossible, says TensorRT.") from None
    for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(wanted, str) and size != -1:
            raise ConversionFailed(
                f"torch2trt's converters fixed axis {axis} of the result {name!r} at {size}, where the model gives"
                f" {wanted}: a size that was read from a shape has become a constant."
            )
    from .torch2trt_tracing import trt_dtype

    wanted_dtype = trt_dtype(trt, dtype)
    layer = network.add_cast(tensor, wanted_dtype) if tensor.dtype != wanted_dtype else network.add_identity(tensor)
    output = layer.get_output(0)
    output.name = name
    network.mark_output(output)

