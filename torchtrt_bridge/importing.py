"""ttb.compile_file(): an ONNX file, an exported program or a saved module in, a module out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .archive import is_archive, read_archive
from .backends.base import Place
from .errors import InvalidFile, InvalidOption
from .exported import ProgramModule
from .onnx_file import OnnxFile, Ranges, compile_onnx
from .tracebacks import leaves_no_memory

if TYPE_CHECKING:
    from .options import BuildOptions
    from .quantization.settings import Quantization
    from .runtime.module import TRTModule


@leaves_no_memory
def compile_file(
    path: str | os.PathLike[str],
    precision: str | None = None,
    *,
    target: str | None = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
    ranges: Ranges | None = None,
    dynamic_batch: tuple[int, int, int] | None = None,
    build: BuildOptions | None = None,
    verify: bool = True,
    source: bool = False,
    converters: Any = None,
    calibration: Any = None,
    quantize: Quantization | None = None,
) -> TRTModule:
    """A module from a file, without the model's code. The file is data: nothing of it is unpickled or run as code.

    Args:
        path: an ONNX model, a ``.pt2`` archive of ``torch.export.save``, or a module saved with ``source=True``.
        precision: as for :func:`torchtrt_bridge.compile`. None means fp32, or what the file is in: the precision of an
            ONNX model and of a saved module is part of it, and no other is taken.
        target: build for this GPU elsewhere (see :func:`torchtrt_bridge.build`).
        device: where the module runs; None means the current CUDA device. Where there is none, and no target, the plan
            is built for every GPU elsewhere; ``"cpu"`` asks for the CPU.
        backend: the route, for an exported program.
        ranges: ``{input name: (min shape, opt shape, max shape)}`` for inputs with dynamic sizes. An exported program
            has ranges of its own, which these narrow.
        dynamic_batch: the short form for axis 0 of every input.
        build, verify, source: as for :func:`torchtrt_bridge.compile`.
        converters: as for :func:`torchtrt_bridge.compile`, of the operators in an exported program.
        calibration, quantize: as for :func:`torchtrt_bridge.compile`, of an exported program.

    Raises:
        InvalidFile: the file is damaged, of no known kind, or holds what only unpickling could read.
        InvalidOption: an option that this kind of file cannot have.
        BridgeError: see :func:`torchtrt_bridge.compile`.
    """
    from .asked import Options, ordinary_tensors, parse_device
    from .progress import Stages

    wanted = parse_device(device)
    if wanted is not None and target is not None:
        raise InvalidOption(f"device={str(wanted)!r} and target={target!r}: give one of them.")
    if wanted is None and target is None and not torch.cuda.is_available():
        target = "portable"
    place = Place(wanted or torch.device("cuda" if target is None else "cpu"), target)
    kind = kind_of(path)
    programs_only = {"converters": converters, "calibration": calibration, "quantize": quantize}
    for name, given in programs_only.items():
        if given is not None and kind != "exported program":
            raise InvalidOption(f"{name}= is for an exported program, and this is a file: {kind}. Leave it out.")
    if kind == "saved module":
        return _rebuilt(path, precision, place, ranges, dynamic_batch, build, verify)
    if kind == "exported program":
        return _exported(
            path, precision or "fp32", place, backend, ranges, dynamic_batch, build, verify, source, programs_only
        )
    own = OnnxFile.read(path).precision
    if precision not in (None, own):
        raise InvalidOption(
            f"precision={precision!r}: the ONNX file {os.fspath(path)} is in {own}, which TensorRT follows to the"
            f" letter. Leave precision out; for {precision}, compile the PyTorch model or its exported program (.pt2)."
        )
    if source or backend not in ("auto", "onnx"):
        what = "source=True" if source else f"backend={backend!r}"
        raise InvalidOption(f"{what}: an ONNX file holds no exported program. Leave it out.")
    options = Options.parse(own, "onnx", build, verify, False, 8)
    with Stages() as stages, ordinary_tensors():
        return compile_onnx(path, options, place, ranges or {}, dynamic_batch, stages)


def kind_of(path: str | os.PathLike[str]) -> str:
    """``"onnx"``, ``"exported program"`` or ``"saved module"``, by what the file holds, not by its name.

    Raises:
        InvalidFile: it is a bare plan, or empty.
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as file:
        start = file.read(16)
    if start[:4] in (b"vtrt", b"ptrt"):
        raise InvalidFile(f"{os.fspath(path)} is a TensorRT plan, from which nothing can be compiled.")
    if is_archive(path):
        return "exported program"
    if start.startswith(b"PK\x03\x04") or start[8:9] == b"{":
        return "saved module"
    if not start or start.isspace():
        raise InvalidFile(f"{os.fspath(path)} is empty.")
    return "onnx"


def _rebuilt(
    path: str | os.PathLike[str],
    precision: str | None,
    place: Place,
    ranges: Ranges | None,
    dynamic_batch: Any,
    build: BuildOptions | None,
    verify: bool,
) -> TRTModule:
    from .rebuilding import rebuild
    from .runtime.artifact import from_tensors, no_manifest
    from .runtime.files import load_file

    tensors = load_file(path)
    if "manifest" not in tensors:
        raise InvalidFile(f"{os.fspath(path)}: {no_manifest(tensors)}")
    artifact, _ = from_tensors(tensors)  # an engine that does not fit here is no hindrance
    changed = build is not None and build != type(build)()
    given = {"ranges": bool(ranges), "dynamic_batch": dynamic_batch is not None, "build": changed}
    for name, is_given in given.items():
        if is_given:
            raise InvalidOption(f"{name}: a saved module is rebuilt as it was captured. Leave it out.")
    if precision not in (None, artifact.precision):
        raise InvalidOption(f"precision={precision!r}: the saved module is in {artifact.precision}. Leave it out.")
    device = None if place.target else place.device
    return rebuild(artifact, device=device, target=place.target, verify=verify)


def _exported(
    path: str | os.PathLike[str],
    precision: str,
    place: Place,
    backend: str,
    ranges: Ranges | None,
    dynamic_batch: Any,
    build: BuildOptions | None,
    verify: bool,
    source: bool,
    programs_only: Mapping[str, Any],
) -> TRTModule:
    from .compiler import build as build_elsewhere
    from .compiler import compile as compile_here

    archive = read_archive(path, place.device.type)
    model = ProgramModule.of(archive).to(place.device)
    inputs, dims = model.examples(ranges or {}, dynamic_batch)
    common: dict[str, Any] = {
        "backend": backend,
        "dynamic_shapes": dims,
        "build": build,
        "source": source,
        **programs_only,
    }
    if place.target:
        return build_elsewhere(model, inputs, precision, target=place.target, **common)
    return compile_here(model, inputs, precision, device=place.device, verify=verify, **common)
