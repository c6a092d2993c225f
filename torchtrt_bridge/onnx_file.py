"""An ONNX file straight into an engine: its own graph and precision, and a signature made from its inputs and results.

TensorRT's networks are strongly typed, so what an ONNX file computes in is written in it; nothing here changes that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import keyword
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .backends.base import Artifact, Place, Segment
from .capture import CapturedModel
from .dynamic import shapes_for
from .errors import ConversionFailed, InvalidFile, InvalidOption, nearest
from .signature import Dim, Parameter, Signature, TensorSpec

if TYPE_CHECKING:
    from .asked import Options
    from .runtime.module import TRTModule

Ranges = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
Wires = tuple[tuple[str, ...], tuple[str, ...]]
_DTYPES = {  # onnx.TensorProto's names, where torch has another
    "float": "float32",
    "double": "float64",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e5m2": "float8_e5m2",
}


@dataclasses.dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file takes and gives.

    Args:
        path: the file.
        inputs, outputs: by the file's own names. A size is an int, a name (sizes of one name are equal), or None.
        opset: the version of ONNX's own operators.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``: the lowest in which its weights or inputs are.
        operators: how often each operator stands in the graph.
        producer: what wrote it.
    """

    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    precision: str
    operators: Mapping[str, int]
    producer: str

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> OnnxFile:
        """Raises:
        InvalidFile: it is no ONNX model, or has inputs that are no tensors.
        FileNotFoundError: there is no such file.
        """
        import onnx

        name = os.fspath(path)
        try:
            model = onnx.load(name, load_external_data=False)
        except OSError:
            raise
        except Exception as error:  # protobuf's own class is not public
            raise InvalidFile(f"{name} is no ONNX model ({type(error).__name__}: {error}).") from None
        graph = model.graph
        if not graph.node or not graph.output:
            raise InvalidFile(f"{name} is no ONNX model: it has no nodes or no results.")
        weights = {tensor.name for tensor in graph.initializer}
        operators: dict[str, int] = {}
        for node in graph.node:
            kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            operators[kind] = operators.get(kind, 0) + 1
        types = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
        inputs = tuple(_spec(value) for value in graph.input if value.name not in weights)
        types |= {spec.dtype.upper() for spec in inputs}
        return cls(
            path=name,
            inputs=inputs,
            outputs=tuple(_spec(value) for value in graph.output),
            opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
            precision="fp16" if "FLOAT16" in types else "bf16" if "BFLOAT16" in types else "fp32",
            operators=dict(sorted(operators.items(), key=lambda item: -item[1])),
            producer=f"{model.producer_name} {model.producer_version}".strip(),
        )

    def signature(self, ranges: Ranges, dynamic_batch: tuple[int, int, int] | None) -> Signature:
        """The interface of the module: the inputs as arguments in the file's order; one result, or a dict by name.

        Raises:
            InvalidOption: a dynamic size without a range, or a range that does not fit the file.
        """
        for name in ranges:
            if name not in [spec.name for spec in self.inputs]:
                known = [spec.name for spec in self.inputs]
                raise InvalidOption(f"There is no input {name!r}; there is {', '.join(known)}.{nearest(name, known)}")
        dims: dict[str, Dim] = {}
        names = _identifiers([spec.name for spec in self.inputs])
        symbols: dict[str, str] = {}
        inputs = []
        for spec, name in zip(self.inputs, names):
            sizes: list[int | str] = []
            for axis, size in enumerate(spec.shape):
                span = _span(spec, axis, ranges, dynamic_batch)
                if isinstance(size, int):
                    if span is not None and set(span) != {size} and spec.name in ranges:
                        raise InvalidOption(f"Axis {axis} of the input {spec!r} is fixed; {span} was given.")
                    sizes.append(size)
                    continue
                if span is None:
                    raise InvalidOption(
                        f"Axis {axis} of the input {spec!r} is dynamic; give its range (min, opt and max shapes of the"
                        " input, or dynamic_batch for axis 0)."
                    )
                if span[0] == span[2] and size == "?":
                    sizes.append(span[0])
                    continue
                dim = symbols.setdefault(size if size != "?" else f"{name}_{axis}", f"{name}_{axis}")
                if size.isidentifier() and size not in dims and symbols[size] == f"{name}_{axis}":
                    dim = symbols[size] = size
                if (dims.setdefault(dim, Dim(*span, dim)).min, dims[dim].opt, dims[dim].max) != span:
                    raise InvalidOption(f"The size {size!r} has two ranges: {dims[dim]} and {span} for {spec.name!r}.")
                sizes.append(dim)
            inputs.append(TensorSpec(name, spec.dtype, tuple(sizes)))
        outputs = []
        for spec, name in zip(self.outputs, _identifiers([spec.name for spec in self.outputs])):
            shape = tuple(symbols.get(size, "?") if isinstance(size, str) else size for size in spec.shape)
            outputs.append(TensorSpec(name, spec.dtype, shape))
        leaves: list[dict[str, Any]] = [{"leaf": {"output": index}} for index in range(len(outputs))]
        by_name = {"dict": [[spec.name, leaf] for spec, leaf in zip(self.outputs, leaves)]}
        return Signature(
            parameters=tuple(Parameter(name, "POSITIONAL_OR_KEYWORD") for name in names),
            arguments={name: {"leaf": index} for index, name in enumerate(names)},
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            result=leaves[0] if len(leaves) == 1 else by_name,
            dims=dims,
        )


def compile_onnx(
    path: str | os.PathLike[str],
    options: Options,
    place: Place,
    ranges: Ranges,
    dynamic_batch: tuple[int, int, int] | None,
    stages: Any,
) -> TRTModule:
    """The module of the ONNX file ``path``; ``options.precision`` is the file's own."""
    from .finishing import Finish
    from .origin import Origin

    file = OnnxFile.read(path)
    signature = file.signature(ranges, dynamic_batch)
    wires: Wires = tuple(spec.name for spec in file.inputs), tuple(spec.name for spec in file.outputs)
    with stages("converting") as progress:
        segment, made = _segment(file, signature, wires, options, place, progress)
    reference, notes = None, ["made from an ONNX file as it is"]
    wanted = options.verify is not False and not place.target
    if wanted and place.needs_plan:
        reference, notes = _reference(file, wires, notes)
    elif wanted:
        notes.append("ONNX Runtime runs the file itself, so there is nothing to compare it with")
    if reference is None:
        options = dataclasses.replace(options, verify=False)

    def eager(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        assert reference is not None
        return reference([tensor.cpu() for tensor in tensors])

    program: Any = None  # verification, which is all that looks at this, needs the inputs and the reference
    captured = CapturedModel(program, signature, _examples(signature), (), None, eager, torch.device("cpu"))
    artifact = Artifact(
        segments=(segment,),
        signature=signature,
        backend="onnx",
        precision=options.precision.name,
        provenance={"torch": torch.__version__, "opset": file.opset, **made},
        report={"notes": notes},
    )
    module = Finish(captured, place, options, stages, Origin())(artifact)
    if wanted and reference is None:  # which the notes have said better
        report = module.report
        notes = [note for note in report.notes if not note.startswith("verify=False")]
        module.set_report(dataclasses.replace(report, notes=tuple(notes)))
    return module


def _segment(
    file: OnnxFile, signature: Signature, wires: Wires, options: Options, place: Place, progress: Any
) -> tuple[Segment, dict[str, Any]]:
    if not place.needs_plan:
        from .runtime.cpu import OnnxExecution

        data = torch.frombuffer(bytearray(_whole(file.path)), dtype=torch.uint8)
        OnnxExecution(data, *wires)  # refuses what it cannot run
        return Segment("onnxruntime", *wires, engine=data), {}
    from .backends.interface import builder_settings, plan_provenance, profile, unknown_dtypes
    from .trt.build import build
    from .trt.request import Request

    if unknown := unknown_dtypes(signature):
        raise ConversionFailed("; ".join(unknown))
    spans = profile(signature)
    renamed = {wire: spans[spec.name] for wire, spec in zip(wires[0], signature.inputs) if spec.name in spans}
    with torch.cuda.device(place.device) if place.device.type == "cuda" else contextlib.nullcontext():
        target = None if place.target in (None, "portable") else place.target
        request = Request(file.path, renamed, target=target, **builder_settings(options.build))
        plan = build(request, progress=progress, isolate=options.build.isolate)
    made = plan_provenance(plan.flavor, plan.version, plan.target, plan.num_layers, options.build, place)
    return Segment("tensorrt", *wires, engine=torch.frombuffer(plan.data, dtype=torch.uint8)), made


def _reference(file: OnnxFile, wires: Wires, notes: list[str]) -> tuple[Any, list[str]]:
    """What runs the same file on the CPU; None, and a note, where ONNX Runtime has no kernels for it."""
    from .errors import BackendUnavailable
    from .runtime.cpu import OnnxExecution

    try:
        data = torch.frombuffer(bytearray(_whole(file.path)), dtype=torch.uint8)
        return OnnxExecution(data, *wires), [*notes, "compared with ONNX Runtime on the CPU"]
    except (ConversionFailed, BackendUnavailable) as error:
        return None, [*notes, f"not compared: {str(error).splitlines()[0]}"]


def _whole(path: str) -> bytes:
    """The file with the weights that lie beside it."""
    import onnx

    try:
        return onnx.load(path).SerializeToString()
    except OSError:
        raise
    except Exception as error:  # a weight that is missing or lies outside the folder, or more than 2 GB
        raise InvalidFile(f"{path}: its weights cannot be read ({type(error).__name__}: {error}).") from None


def _examples(signature: Signature) -> tuple[torch.Tensor, ...]:
    """Inputs made up from the signature: random floats, ids of 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    shapes = shapes_for(signature.inputs, {name: dim.opt for name, dim in signature.dims.items()})
    inputs = []
    for spec, shape in zip(signature.inputs, shapes):
        if spec.torch_dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator).to(spec.torch_dtype))
        else:
            inputs.append(torch.randint(0, 2, shape, generator=generator).to(spec.torch_dtype))
    return tuple(inputs)


def _span(
    spec: TensorSpec, axis: int, ranges: Ranges, dynamic_batch: tuple[int, int, int] | None
) -> tuple[int, int, int] | None:
    """The range of one axis; None where none was given."""
    if spec.name not in ranges:
        return dynamic_batch if axis == 0 else None
    shapes = ranges[spec.name]
    if any(len(shape) != len(spec.shape) for shape in shapes):
        raise InvalidOption(f"The input {spec!r} has {len(spec.shape)} dimensions; the shapes {shapes} were given.")
    smallest, usual, largest = (shape[axis] for shape in shapes)
    return smallest, usual, largest


def _spec(value: Any) -> TensorSpec:
    """A value of the file's; an unknown size is ``"?"``."""
    import onnx

    if not value.type.HasField("tensor_type"):
        raise InvalidFile(f"The ONNX model's {value.name!r} is no tensor (a sequence, a map or an optional one).")
    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = _DTYPES.get(name, name)
    if not isinstance(vars(torch).get(dtype), torch.dtype):
        raise InvalidFile(f"The ONNX model's {value.name!r} is of {name}, which torch does not have.")
    sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return TensorSpec(value.name, dtype, tuple(sizes))


def _identifiers(names: Sequence[str]) -> list[str]:
    """Each name as an identifier of Python's, told apart: ``input.1`` becomes ``input_1``."""
    found: list[str] = []
    for name in names:
        text = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
        text = f"_{text}" if text[0].isdigit() or keyword.iskeyword(text) else text
        while text in found:
            text += "_"
        found.append(text)
    return found
