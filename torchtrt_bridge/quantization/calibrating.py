"""ttb.calibrate(): run data through a captured model and keep what its activations were."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from ..batch_norm import fold_batch_norm
from ..capture import CapturedModel, capture
from ..errors import BackendUnavailable, InvalidInput, InvalidOption
from ..export_lock import export_lock
from ..fx_nodes import operator_name
from ..program_graph import unguarded
from ..reproducible import reproducible
from ..tensor_digests import TensorDigests
from ..tracebacks import leaves_no_memory
from .attention import spell_attention_out
from .calibration import Calibration
from .data import Batches
from .histogram import Histogram
from .naming import tensor_names


@leaves_no_memory
def calibrate(
    model: nn.Module,
    inputs: Any,
    data: Any,
    *,
    calibration_input: Any = None,
    batches: int | None = None,
    dynamic_shapes: Any = None,
    dynamic_batch: tuple[int, int, int] | None = None,
) -> Calibration:
    """What ``data`` shows of the model's activations, for ``compile(..., "int8", calibration=...)``.

    Args:
        model, inputs, dynamic_shapes, dynamic_batch: as :func:`torchtrt_bridge.compile` has them. The shapes only say
            what the data's may be: a calibration serves compilations for other shapes too.
        data: a DataLoader, a dataset or another iterable of what the model is called with; some hundred examples.
        calibration_input: picks that from a batch that holds more (labels): a function, or an index or key.
        batches: how many batches to take at most.

    Raises:
        InvalidInput: the data is empty, does not fit the model, or holds NaN; the model makes NaN of it.
        CaptureFailed: see :func:`torchtrt_bridge.compile`.

    Example:
        >>> import torch, torchtrt_bridge as ttb
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> found = ttb.calibrate(model, torch.randn(2, 4), [torch.full((2, 4), 0.5), torch.full((2, 4), -1.0)])
        >>> found.examples, found.histograms["0/linear"].low, found.histograms["0/linear"].high
        (4, -1.0, 0.5)
    """
    from ..asked import ordinary_tensors

    with ordinary_tensors():
        captured = capture(model, inputs, dynamic_shapes=dynamic_shapes, dynamic_batch=dynamic_batch)
        return observe(captured, data, calibration_input, batches)


def observe(captured: CapturedModel, data: Any, select: Any = None, limit: int | None = None) -> Calibration:
    """The calibration of a captured model; see :func:`calibrate`."""
    given = Batches(captured, data, select, limit)
    with reproducible(captured.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao warns of what its own next version does
        with export_lock:
            module, observers = _observed(quantizable(captured.program))
        for tensors in given:
            module(*tensors)
    for name, observer in observers.items():
        if observer.strange:
            raise InvalidInput(
                f"With the calibration data, {observer.strange} values of the tensor that {name} takes are NaN or"
                " infinite, which have no range. Does the eager model's own result hold NaN for this data?"
            )
    histograms: dict[str, Histogram] = {name: observer.histogram for name, observer in observers.items()}
    return Calibration(histograms, digest(captured.program), given.digest, given.count, given.examples)


def quantizable(program: ExportedProgram) -> ExportedProgram:
    """``program`` in the form that is calibrated and quantized: batch norms folded, attentions spelled out."""
    return spell_attention_out(fold_batch_norm(program))


def constant_in(program: ExportedProgram) -> Callable[[Node], bool]:
    """Whether a node of the program's graph is one of its tensors rather than an input."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind in kinds}
    return lambda node: node.op == "placeholder" and node.name in names


def digest(program: ExportedProgram) -> str:
    """SHA-256 of the names, dtypes, shapes and digests of the parameters and buffers: the same on every machine."""
    named = sorted(program.state_dict.items())
    whole = hashlib.sha256()
    for (name, tensor), inside in zip(named, TensorDigests().of([tensor for _, tensor in named])):
        whole.update(f"{name.removeprefix('model.')} {tensor.dtype} {list(tensor.shape)} {inside.hex()}\n".encode())
    return whole.hexdigest()


def _observed(program: ExportedProgram) -> tuple[torch.fx.GraphModule, dict[str, Any]]:
    """The program as a module that observes its activations, and the observers by tensor name.

    Raises:
        BackendUnavailable: torchao is missing.
        InvalidOption: nothing in the program can be quantized.
    """
    try:
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        from .quantizer import TensorRTQuantizer
    except ImportError as error:
        raise BackendUnavailable(
            f"Calibration needs torchao ({error}); pip install 'torchtrt_bridge[quantization]'."
        ) from None
    from .settings import Quantization

    names = {node.name: name for node, name in tensor_names(program.graph, constant_in(program)).items()}
    if not names:
        raise InvalidOption(
            "The model has no convolution, linear layer or matrix product that takes int8 or fp8; compile it in fp16."
        )
    everything = Quantization(attention=True, last_layer=True)
    module = prepare_pt2e(unguarded(program), TensorRTQuantizer("int8", everything, weights=False))
    modules = dict(module.named_modules())
    observers: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target.startswith("activation_post_process"):
            observer = observers[names[node.args[0].name]] = modules[node.target]
            observer.keeps_channels = any(operator_name(reader) == "linear" for reader in node.users)
    return module, observers
