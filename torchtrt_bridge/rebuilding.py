"""What a saved module can still become: an ONNX file, or a new engine, from the program that it keeps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from .backends.base import Artifact, Place, StoredProgram
from .backends.interface import input_names, output_names
from .backends.onnx_graph import OPSETS, save, to_onnx
from .capture import CapturedModel
from .dynamic import shapes_for
from .errors import EngineMismatch
from .precision import Precision, cast_program
from .reproducible import reproducible
from .runtime.files import write_atomically
from .runtime.program import restore, run_callable
from .tracebacks import leaves_no_memory

if TYPE_CHECKING:
    from .runtime.module import TRTModule

_INLINE = 2**31 - 2**20  # ONNX's limit for one file, less what the graph itself takes


def write_onnx(artifact: Artifact, path: str | os.PathLike[str]) -> None:
    """See :meth:`TRTModule.save_onnx`."""
    if artifact.results:
        raise EngineMismatch(
            f"This module is {len(artifact.segments)} segments, some of which PyTorch runs: no ONNX model computes it."
        )
    segment = artifact.segments[0]
    if segment.runtime == "onnxruntime":
        assert segment.engine is not None
        data = segment.engine
        write_atomically(path, lambda file: file.write(data.numpy().data))
        return
    if segment.program is not None:
        program = restore(segment.program)
    elif artifact.source is not None:
        program = cast_program(_kept(artifact.source), precision_of(artifact)).program
    else:
        raise EngineMismatch(
            "This module holds a TensorRT plan, from which no ONNX model can be made. Compile it with source=True to"
            " keep the program beside the plan."
        )
    signature = artifact.signature
    model = to_onnx(program, input_names(signature), output_names(signature), OPSETS[0])
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size <= _INLINE:
        from .backends.onnx_graph import to_bytes

        write_atomically(path, lambda file: file.write(to_bytes(model)))
        return
    final = Path(path)
    weights = f"{final.name}.weights"
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".torchtrt_bridge-") as folder:
        save(model, Path(folder) / final.name, weights)
        os.replace(Path(folder) / weights, final.parent / weights)
        os.replace(Path(folder) / final.name, final)


@leaves_no_memory
def rebuild(
    artifact: Artifact, *, device: torch.device | str | None, target: str | None, verify: Any
) -> TRTModule:
    """See :meth:`TRTModule.rebuild`."""
    from .asked import Options, ordinary_tensors, parse_device
    from .compiler import make
    from .progress import Stages

    if artifact.source is None:
        raise EngineMismatch(
            "This module was compiled without source=True, so its file holds no program to rebuild from. Compile the"
            " model again."
        )
    here = torch.device("cuda" if torch.cuda.is_available() and target is None else "cpu")
    wanted = parse_device(device) or here
    options = Options.parse(precision_of(artifact), "auto", None, verify if target is None else False, True, 8)
    with Stages() as stages, ordinary_tensors():
        captured = recapture(artifact, torch.device("cpu"))
        return make(captured, Place(wanted, target), options, stages, artifact.origin)


def precision_of(artifact: Artifact) -> Precision:
    """What the module was compiled for, layers with a precision of their own among it."""
    return Precision.from_dict(artifact.asked) if artifact.asked else Precision.parse(artifact.precision)


def _kept(source: StoredProgram) -> ExportedProgram:
    """The program on the CPU, where its tensors are kept; one that was captured on a GPU says otherwise."""
    return move_to_device_pass(restore(source), "cpu")


def recapture(artifact: Artifact, device: torch.device) -> CapturedModel:
    """The kept program as it was captured, with inputs made up from the signature: random floats, ids of 0 and 1."""
    assert artifact.source is not None
    program = _kept(artifact.source)
    run = run_callable(program)
    signature = artifact.signature
    sizes = {name: min(max(2, dim.min), dim.max) for name, dim in signature.dims.items()}
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for spec, shape in zip(signature.inputs, shapes_for(signature.inputs, sizes)):
        if spec.torch_dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator).to(spec.torch_dtype))
        else:
            inputs.append(torch.randint(0, 2, shape, generator=generator).to(spec.torch_dtype))

    def eager(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with reproducible(device):
            return list(run([t.to(device) for t in tensors]))

    return CapturedModel(program, signature, tuple(inputs), artifact.constants, None, eager, device)
