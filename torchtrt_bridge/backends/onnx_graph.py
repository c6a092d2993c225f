"""A captured program as an ONNX model whose nodes carry the names of the user's modules.

torch.onnx.export (dynamo) with its own optimizer; onnx_ir holds the result, so that weights stay the program's tensors
until they are written. onnxslim, tried after that optimizer, removed nothing more that an engine keeps, and copies
every weight.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ..errors import BackendUnavailable, BridgeError, ConversionFailed
from ..export_lock import export_lock
from .onnx_forms import translations
from .onnx_norms import settle_norms
from .onnx_operators import exportable
from .onnx_quantization import pack_int4, quantized_translations
from .onnx_results import settle_results

if TYPE_CHECKING:
    import onnx_ir as ir

OPSETS = (23, 18)
"""Newest first. 23 has ``Attention`` and ``Gelu`` as operators, which TensorRT fuses; 18 spells them out."""

_SCOPES = "pkg.torch.onnx.name_scopes"


def to_onnx(program: ExportedProgram, inputs: list[str], outputs: list[str], opset: int) -> ir.Model:
    """The ONNX model of ``program``, checked, its nodes named ``module.path/operator``.

    Raises:
        ConversionFailed: an operator has no ONNX form, with the user's module that it came from.
        ConverterFailed: a converter's ONNX form raised, or gave something else than it must.
        BackendUnavailable: onnx or onnxscript is missing.
    """
    try:
        import onnxscript  # noqa: F401  (torch.onnx needs it, and says so less clearly)
    except ImportError as error:
        raise BackendUnavailable(f"The ONNX route needs onnxscript ({error}); pip install onnxscript.") from None
    try:
        with export_lock, torch.no_grad(), quiet():
            program = exportable(program)
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                optimize=True,
                verbose=False,
                custom_translation_table={**translations(program), **quantized_translations(program, opset)},
            )
    except Exception as error:
        own = next((e for e in _chain(error) if isinstance(e, BridgeError)), None)
        if own is not None:
            raise own from own.__cause__
        raise ConversionFailed(_explain(error, program)) from error
    assert exported is not None
    model = exported.model
    model.doc_string = None
    settle_norms(model)
    settle_results(model, program)
    pack_int4(model)
    _name_nodes(model)
    annotated: list[Any] = [model, model.graph, *model.graph.inputs, *model.graph.initializers.values()]
    for item in annotated:
        item.metadata_props.clear()
    _check(model)
    return model


def to_bytes(model: ir.Model) -> bytes:
    """``model`` as one ONNX file's bytes.

    Raises:
        ConversionFailed: over 2 GiB, protobuf's limit.
    """
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size > 2**31 - 2**20:
        raise ConversionFailed(
            f"The weights ({size / 2**30:.1f} GiB) do not fit one ONNX message (2 GiB). Compile on a GPU, or with a"
            " lower precision; save_onnx(path) writes models of any size, with the weights beside."
        )
    return serialize(model)


def serialize(model: ir.Model) -> bytes:
    """``model`` as it is: whole, or, inside :func:`without_weights`, with references to its weights."""
    import onnx_ir as ir

    return ir.serde.serialize_model(model).SerializeToString()


def save(model: ir.Model, path: str | os.PathLike[str], weights: str) -> None:
    """Write ``model`` with its weights in the file ``weights`` beside it, one tensor at a time."""
    import onnx_ir as ir

    ir.save(model, path, external_data=weights)


def _name_nodes(model: ir.Model) -> None:
    """Give every node its place in the user's model as its name; later messages and TensorRT's layers show it."""
    taken: dict[str, int] = {}
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(_SCOPES)
        path: list[str] = [str(s) for s in ast.literal_eval(scopes)] if scopes else []
        module = path[-2] if len(path) > 1 else ""
        module = "" if module.startswith("_empty_nn_module") else module.removeprefix("model").removeprefix(".")
        operator = path[-1] if path else (node.name or node.op_type)
        name = f"{module}/{operator}" if module else operator
        count = taken[name] = taken.get(name, -1) + 1
        node.name = f"{name}.{count}" if count else name
        node.doc_string = None
        annotated: list[Any] = [node, *node.outputs]
        for item in annotated:
            item.metadata_props.clear()  # stack traces, among others: file names of the machine that exported


def _check(model: ir.Model) -> None:
    """onnx's checker over the structure, weights left out (they were tensors a moment ago)."""
    import onnx
    import onnx_ir as ir

    with without_weights(model):
        proto = ir.serde.serialize_model(model)
    for initializer in proto.graph.initializer:
        for field in ("external_data", "data_location", "dims", "raw_data"):
            initializer.ClearField(field)
        initializer.dims.append(0)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ConversionFailed(f"torch.onnx produced an invalid model: {error}") from error


@contextlib.contextmanager
def without_weights(model: ir.Model, also: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Within, ``model`` serializes with references in place of its large initializers, and of those that ``also``
    names. They are given by name."""
    import onnx_ir as ir

    large = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and (value.const_value.nbytes >= 1024 or name in also)
    }
    for name, tensor in large.items():
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            "weights", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
    try:
        yield large
    finally:
        for name, tensor in large.items():
            model.graph.initializers[name].const_value = tensor


def _explain(error: Exception, program: ExportedProgram) -> str:
    """The operator and the user's module, out of torch.onnx's long message."""
    chain = [str(e) for e in _chain(error)]
    found = re.search(r"translating node %(\w+) .*?target=torch\.ops\.([\w.]+)\]", " ".join(chain))
    if found is None:
        return f"The ONNX route cannot convert the model: {type(error).__name__}: {chain[-1].splitlines()[0]}"
    name, operator = found.groups()
    node = next((n for n in program.graph.nodes if n.name == name), None) or _after_decomposition(program, operator)
    place = ""
    if node is not None:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        module = stack[-1][0].removeprefix("model").removeprefix(".") if stack else ""
        place = f" (in {module or 'the top module'})"
    return f"The ONNX route cannot convert {operator}{place}: {chain[-1].splitlines()[0]}"


def _after_decomposition(program: ExportedProgram, operator: str) -> Node | None:
    """The first node of ``operator`` that ``program`` has once its operators are spelled out, as torch.onnx does."""
    from torch._decomp import decomposition_table

    table = dict(torch.export.default_decompositions())
    used = {node.target for node in program.graph.nodes}
    table.update({target: decomposition_table[target] for target in used if target in decomposition_table})
    try:
        with export_lock:
            graph = program.run_decompositions(table).graph
    except Exception:  # this is a message's last detail, not worth another error
        return None
    return next((n for n in graph.nodes if str(n.target) == operator), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch.onnx prints its progress and warns of its own internals; a library should do neither."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
