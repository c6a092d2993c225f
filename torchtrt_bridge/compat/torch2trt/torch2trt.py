"""``torch2trt(...)``: torch2trt's signature, torchtrt_bridge's compilation."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import InvalidOption, ModelInTraining, nearest
from ...tracebacks import leaves_no_memory
from ...trt.log import listening, logger
from .dataset import Dataset, FolderDataset, ListDataset, TensorBatchDataset
from .dataset_calibrator import DEFAULT_CALIBRATION_ALGORITHM, DatasetCalibrator
from .flatten_module import Flatten, Unflatten
from .flattener import Flattener
from .misc_utils import (
    torch_device_from_trt,
    torch_device_to_trt,
    torch_dtype_from_trt,
    torch_dtype_to_trt,
    trt_int_dtype,
)
from .registry import (
    CONVERTERS,
    IntWrapper,
    SizeWrapper,
    get_arg,
    tensorrt_converter,
    torch_dim_resolve_negative,
    torch_dim_to_trt_axes,
)
from .trt_module import TRTModule
from .version_utils import torch_version, trt_version

__all__ = [
    "CONVERTERS",
    "DEFAULT_CALIBRATION_ALGORITHM",
    "Dataset",
    "DatasetCalibrator",
    "Flatten",
    "Flattener",
    "FolderDataset",
    "IntWrapper",
    "ListDataset",
    "SizeWrapper",
    "TRTModule",
    "TensorBatchDataset",
    "Unflatten",
    "get_arg",
    "tensorrt_converter",
    "torch2trt",
    "torch_device_from_trt",
    "torch_device_to_trt",
    "torch_dim_resolve_negative",
    "torch_dim_to_trt_axes",
    "torch_dtype_from_trt",
    "torch_dtype_to_trt",
    "torch_version",
    "trt_int_dtype",
    "trt_version",
]

_WORKSPACE = 1 << 25  # torch2trt's default; TensorRT 10 and later are not told it there, nor here
_METHODS = {  # of choosing a range, by the algorithms of TensorRT's old calibrators
    "LEGACY_CALIBRATION": "percentile",
    "ENTROPY_CALIBRATION": "entropy",
    "ENTROPY_CALIBRATION_2": "entropy",
    "MINMAX_CALIBRATION": "max",
}
_LEVELS = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


def __getattr__(name: str) -> Any:
    from .registry import of_the_library

    return of_the_library(name)


@leaves_no_memory
def torch2trt(
    module: nn.Module,
    inputs: Any,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    log_level: Any = None,
    fp16_mode: bool = False,
    max_workspace_size: int = _WORKSPACE,
    strict_type_constraints: bool = False,
    keep_network: bool = True,
    int8_mode: bool = False,
    int8_calib_dataset: Any = None,
    int8_calib_algorithm: Any = DEFAULT_CALIBRATION_ALGORITHM,
    use_onnx: bool = False,
    default_device_type: Any = None,
    dla_core: int = 0,
    gpu_fallback: bool = True,
    device_types: Mapping[Any, Any] = {},  # noqa: B006 (torch2trt's signature; never written to)
    min_shapes: Any = None,
    max_shapes: Any = None,
    opt_shapes: Any = None,
    onnx_opset: int | None = None,
    max_batch_size: int | None = None,
    avg_timing_iterations: int | None = None,
    **kwargs: Any,
) -> TRTModule:
    """``module`` on TensorRT, as :func:`torchtrt_bridge.compile` makes and verifies it.

    Args:
        inputs: a list or tuple of arguments, or a :class:`Dataset` of them, whose shapes then give the ranges.
        input_names, output_names: the engine's names of the tensors; None means ``input_0``, ``output_0``, ...
        log_level: a severity of ``trt.Logger``: TensorRT's messages from there up go to stderr.
        fp16_mode: precision ``"fp16"``.
        int8_mode: precision ``"int8"``, the rest in what ``fp16_mode`` says.
        int8_calib_dataset: a :class:`Dataset` of arguments that look like those of later calls; None: ``inputs``.
        int8_calib_algorithm: how ranges are chosen: entropy, or, for the others, percentile and min-max.
        max_workspace_size: the layers' scratch memory; the default leaves it to TensorRT.
        strict_type_constraints: always so: networks are strongly typed.
        keep_network: has no effect; the attribute ``network`` raises, as no network outlives the build.
        use_onnx: take the ONNX route; else the first route that converts and verifies.
        min_shapes, opt_shapes, max_shapes: nested as ``inputs``, a shape for each tensor.
        max_batch_size: axis 0 of every input from 1 to this.

    Raises:
        InvalidOption: an argument that cannot be honoured: DLA, ``onnx_opset``,
            ``avg_timing_iterations``, an unknown one. Others: see :func:`torchtrt_bridge.compile`.
    """
    _refuse(default_device_type, dla_core, device_types, onnx_opset, avg_timing_iterations, kwargs)
    from ...asked import Options, ordinary_tensors
    from ...backends.base import Place
    from ...compiler import make, with_quantization
    from ...options import BuildOptions
    from ...origin import Origin
    from ...precision import Precision
    from ...progress import Stages
    from ...quantization.settings import Quantization
    from .ranges import Ranges, capture_with

    ranges = Ranges.of(inputs, min_shapes, opt_shapes, max_shapes, max_batch_size)
    build = BuildOptions(workspace=None if max_workspace_size == _WORKSPACE else max_workspace_size)
    other = "fp16" if fp16_mode else "fp32"
    precision = Precision("int8", other=other) if int8_mode else Precision(other)
    options = Options.parse(precision, "onnx" if use_onnx else "auto", build, verify=True, source=False, max_contexts=8)
    with _saying(log_level), Stages() as stages, ordinary_tensors():
        with stages("capturing"):
            captured = capture_with(in_eval(module, ranges.example), ranges)
        if options.backend == "auto" and captured.device.type == "cuda":
            options = dataclasses.replace(options, backend=_route())
        signature = dataclasses.replace(
            captured.signature,
            inputs=_named(captured.signature.inputs, input_names, "input"),
            outputs=_named(captured.signature.outputs, output_names, "output"),
        )
        captured, place = dataclasses.replace(captured, signature=signature), Place(captured.device)
        if int8_mode:
            data = int8_calib_dataset if int8_calib_dataset is not None else [ranges.example]
            settings = Quantization(method=_method(int8_calib_algorithm), last_layer=True)
            captured, options = with_quantization(captured, options, place, data, None, settings, stages)
        return TRTModule.of(make(captured, place, options, stages, Origin.of(module, None)))


def _refuse(
    default_device_type: Any,
    dla_core: int,
    device_types: Mapping[Any, Any],
    onnx_opset: int | None,
    avg_timing_iterations: int | None,
    unknown: Mapping[str, Any],
) -> None:
    kinds = [default_device_type, *device_types.values()]
    if dla_core or any(getattr(kind, "name", kind) not in (None, "GPU") for kind in kinds):
        raise InvalidOption("torchtrt_bridge builds for GPUs only, not for DLA; leave the device types out.")
    if onnx_opset is not None:
        raise InvalidOption(f"onnx_opset={onnx_opset}: the newest that converts and builds is used; leave it out.")
    if avg_timing_iterations is not None:
        raise InvalidOption(f"avg_timing_iterations={avg_timing_iterations}: there is no such setting; leave it out.")
    for name in unknown:
        known = inspect.signature(torch2trt).parameters
        raise InvalidOption(f"torch2trt() has no argument {name!r}.{nearest(name, known)}")


def _method(algorithm: Any) -> str:
    """How ranges are chosen. Raises InvalidOption for what is no algorithm of TensorRT's."""
    name = str(getattr(algorithm, "name", algorithm))
    if name not in _METHODS:
        known = ", ".join(_METHODS)
        raise InvalidOption(f"int8_calib_algorithm={algorithm!r}: there is {known}.{nearest(name, _METHODS)}")
    return _METHODS[name]


def _route() -> str:
    """Converters of the user's are a wish to have them used, where the route that uses them is there."""
    if CONVERTERS:
        from ...backends.torch2trt_library import Library

        if not Library.missing():
            return "torch2trt"
        logger.warning(
            "%d converters are registered with tensorrt_converter; they are not used, as torch2trt itself is not"
            " installed: the operators inside those functions are converted instead",
            len(CONVERTERS),
        )
    return "auto"


def in_eval(module: nn.Module, example: Sequence[Any]) -> nn.Module:
    """``module``, or, where it is in training mode and that changes nothing, a copy of it in eval mode.

    Raises:
        ModelInTraining: it computes something else in training mode.
    """
    if not any(child.training for child in module.modules()):
        return module
    training, evaluating = copy.deepcopy(module), copy.deepcopy(module).eval()
    with torch.no_grad(), torch.random.fork_rng():
        results = [
            [leaf for leaf in torch.utils._pytree.tree_leaves(m(*_cloned(example))) if isinstance(leaf, torch.Tensor)]
            for m in (training, evaluating)
        ]
    state = [torch.utils._pytree.tree_leaves(dict(m.state_dict())) for m in (training, evaluating)]
    for which in (results, state):
        if len(which[0]) != len(which[1]) or not all(torch.equal(a, b) for a, b in zip(*which)):
            raise ModelInTraining(
                "The module is in training mode and computes something else there than in eval mode (dropout, batch"
                " statistics), which an engine cannot. Call module.eval() first."
            )
    return evaluating


def _cloned(value: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, value)


def _named(specs: Sequence[Any], names: Sequence[str] | None, kind: str) -> tuple[Any, ...]:
    names = [f"{kind}_{i}" for i in range(len(specs))] if names is None else list(names)
    if len(names) != len(specs) or len(set(names)) != len(names):
        raise InvalidOption(
            f"{kind}_names={names}: {len(specs)} different names are needed, for {', '.join(s.name for s in specs)}."
        )
    return tuple(dataclasses.replace(spec, name=name) for spec, name in zip(specs, names))


@contextlib.contextmanager
def _saying(level: Any) -> Iterator[None]:
    """TensorRT's messages of ``level`` and above to stderr. Errors need not be: they are in the exception."""
    chosen = getattr(level, "name", level)
    if chosen is not None and chosen not in _LEVELS:
        raise InvalidOption(f"log_level={level!r}: a severity of trt.Logger is needed, such as trt.Logger.INFO.")
    if chosen in (None, "INTERNAL_ERROR", "ERROR"):
        yield
        return
    shown = _LEVELS[: _LEVELS.index(chosen) + 1]
    before = logger.level

    def echo(message: str) -> None:
        if message.split(":")[0] in shown:
            print(f"[TRT] {message}", file=sys.stderr)

    if chosen == "VERBOSE":
        logger.setLevel("DEBUG")  # else TensorRT's verbose messages go no further than its logger
    try:
        with listening(echo):
            yield
    finally:
        logger.setLevel(before)
