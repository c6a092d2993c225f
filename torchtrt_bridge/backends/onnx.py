"""The ONNX route: captured program -> cast program -> ONNX -> TensorRT's parser and builder.

On the CPU the same ONNX model runs on ONNX Runtime (fp32), or the cast program in PyTorch (fp16, bf16).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from ..capture import CapturedModel
from ..errors import BuildFailed, ConversionFailed
from ..forms import FormCall
from ..layer_forms import makes_layers, refusal, summary, unserved
from ..lowering import serving
from ..options import BuildOptions
from ..precision import CastResult, Precision, cast_program
from ..quantization.graph import is_quantized
from ..signature import Signature
from ..trt.targets import installed
from .base import Artifact, Place, Segment, Served, Support
from .interface import builder_settings, input_names, output_names, plan_provenance, profile, unknown_dtypes
from .onnx_forms import takes
from .onnx_graph import OPSETS, serialize, to_bytes, to_onnx, without_weights
from .onnx_layers import Layers
from .onnx_markers import mark, place_markers
from .onnx_quantization import with_unsigned_activations

_log = logging.getLogger("torchtrt_bridge")
_ORT_DTYPES = "float64 float32 float16 int64 int32 int16 int8 uint8 bool".split()


class OnnxBackend:
    """See the module's docstring."""

    name = "onnx"

    def supports(self, captured: CapturedModel, place: Place) -> Support:
        """Dtypes at the edges, and forms of converters; operators are known only by trying."""
        reasons: tuple[str, ...] = ()
        if place.needs_plan:
            unfit = unserved(captured, lambda call: self.served(call, place))
            reasons = (*unknown_dtypes(captured.signature), *unfit)
        return Support(self.name, not reasons, reasons)

    def refusals(self, program: ExportedProgram, place: Place) -> dict[str, str]:
        """See :meth:`.base.Backend.refusals`."""
        from .onnx_refusals import refusals

        return refusals(program, place)

    def served(self, call: FormCall, place: Place) -> Served:
        """The TensorRT form in a plan, where there is one and it fits; else the ONNX form."""
        assert call.registration is not None
        if place.needs_plan and makes_layers(call, installed()):
            return Served("tensorrt")
        reason = (refusal(call.registration, installed()) or "") if place.needs_plan else ""
        return Served("onnx" if takes(call) else None, reason)

    def convert(
        self,
        captured: CapturedModel,
        precision: Precision,
        build: BuildOptions,
        place: Place,
        progress: Callable[[str, float], None],
    ) -> Artifact:
        """See :meth:`.base.Backend.convert`."""
        cast = cast_program(self._program(captured, precision, place), precision)
        provenance = {"torch": torch.__version__, "opset": None}
        if place.needs_plan:
            segment, made, notes, work = _plan(cast.program, captured.signature, build, place, progress)
        else:
            segment, made, notes = _for_cpu(cast, captured.signature, precision)
            work = []
        return Artifact(
            segments=(segment,),
            signature=captured.signature,
            backend=self.name,
            precision=precision.name,
            constants=captured.constants,
            provenance={**provenance, **made},
            report={
                "kept_fp32": {op: list(places) for op, places in cast.kept.items()},
                "notes": [*cast.notes, *notes],
                "work_rows": work,
            },
        )

    def _program(self, captured: CapturedModel, precision: Precision, place: Place) -> ExportedProgram:
        """The program to convert; plain where PyTorch is to run it."""
        if not place.needs_plan and _lack(captured.program, captured.signature, precision) is not None:
            return captured.program
        return serving(captured, lambda call: self.served(call, place).form is not None)


def _lack(program: ExportedProgram, signature: Signature, precision: Precision) -> str | None:
    """What ONNX Runtime's CPU kernels lack of what is wanted; None where they have it."""
    unknown = sorted({spec.dtype for spec in (*signature.inputs, *signature.outputs)} - set(_ORT_DTYPES))
    low = sorted(str(dtype).removeprefix("torch.") for dtype in precision.dtypes - {torch.float32})
    if is_quantized(program, torch.float8_e4m3fn):
        low.append("float8")  # ONNX Runtime 1.32 computes something else once it has fused the operators around it
    if unknown:
        return f"take {unknown[0]} tensors"
    return f"compute in {' or '.join(low)}" if low else None


def _for_cpu(cast: CastResult, signature: Signature, precision: Precision) -> tuple[Segment, dict[str, Any], list[str]]:
    inputs, outputs = tuple(input_names(signature)), tuple(output_names(signature))
    lack = _lack(cast.program, signature, precision)
    if lack is not None:
        from ..runtime.program import store

        stored = store(cast.program).owned()
        note = f"ONNX Runtime's CPU kernels do not {lack}; PyTorch runs the cast program"
        return Segment("torch", inputs, outputs, program=stored), {}, [note]
    import onnxruntime

    from ..runtime.cpu import OnnxExecution

    program = with_unsigned_activations(cast.program) if is_quantized(cast.program) else cast.program
    refusal: ConversionFailed | None = None
    for opset in OPSETS:
        try:
            data = torch.frombuffer(
                bytearray(to_bytes(to_onnx(program, list(inputs), list(outputs), opset))), dtype=torch.uint8
            )
            OnnxExecution(data, inputs, outputs)  # an operator without a CPU kernel is refused here
        except ConversionFailed as error:
            refusal = refusal or error
            continue
        made = {"opset": opset, "onnxruntime": onnxruntime.__version__}
        notes = [] if refusal is None else [f"opset {opset} is in use: {refusal}"]
        return Segment("onnxruntime", inputs, outputs, engine=data), made, notes
    assert refusal is not None
    raise refusal


def _plan(
    program: ExportedProgram,
    signature: Signature,
    build: BuildOptions,
    place: Place,
    progress: Callable[[str, float], None],
) -> tuple[Segment, dict[str, Any], list[str], list[dict[str, Any]]]:
    """A TensorRT plan, from the newest opset that converts and builds; its provenance, notes and work."""
    from ..trt.build import build as build_plan
    from ..trt.request import HandwrittenFailed, Initializer, Request

    settings = builder_settings(build)
    inputs, outputs = input_names(signature), output_names(signature)
    program, marked = mark(program)
    refusal: Exception | None = None
    for opset in OPSETS:
        try:
            progress("making the ONNX model", 0.0)
            model = to_onnx(program, inputs, outputs, opset)
            layers = Layers(place_markers(model, marked))
            with without_weights(model, also=layers.constants) as weights:
                proto = serialize(model)
            with torch.cuda.device(place.device) if place.device.type == "cuda" else contextlib.nullcontext():
                plan = build_plan(
                    Request(
                        model=proto,
                        profile=profile(signature),
                        edit=layers if layers.calls else None,
                        initializers=tuple(Initializer(name, *_memory(tensor)) for name, tensor in weights.items()),
                        target=None if place.target in (None, "portable") else place.target,
                        **settings,
                    ),
                    progress=progress,
                    isolate=build.isolate,
                )
            del model, weights
        except (ConversionFailed, BuildFailed) as error:
            if opset == OPSETS[-1] or isinstance(error.__cause__, HandwrittenFailed):  # which no opset mends
                raise refusal or error from error
            refusal = error
            _log.info("opset %d did not build, trying the next: %s", opset, error)
            continue
        engine = torch.frombuffer(plan.data, dtype=torch.uint8)
        segment = Segment("tensorrt", tuple(inputs), tuple(outputs), engine=engine)
        made = plan_provenance(plan.flavor, plan.version, plan.target, plan.num_layers, build, place)
        notes = [] if refusal is None else [f"opset {opset} is in use, without fused attention: {refusal}"]
        notes += _notes(layers)
        return segment, {"opset": opset, **made}, notes, [dataclasses.asdict(item) for item in plan.work]
    raise AssertionError("OPSETS is empty")


def _notes(layers: Layers) -> list[str]:
    """What the report says of layers that converters made."""
    notes = summary(layers.calls)
    if layers.calls and (reason := layers.stays()) is not None:
        notes.append(f"TensorRT built in this process, which a fault of its would have ended: {reason}")
    return notes


def _memory(tensor: Any) -> tuple[int, int, Any]:
    """Address, size and owner of a weight's bytes on the host. Only what lies on a GPU, or in pieces, is copied."""
    raw = getattr(tensor, "raw", None)
    if isinstance(raw, torch.Tensor):
        raw = raw.detach().cpu().contiguous()
        return raw.data_ptr(), raw.nbytes, raw
    packed = tensor.dtype.bitwidth < 8  # several numbers in a byte
    array = np.frombuffer(tensor.tobytes(), np.uint8) if packed else np.ascontiguousarray(tensor.numpy())
    return array.ctypes.data, array.nbytes, array
