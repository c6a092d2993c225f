"""The results of an ONNX model as TensorRT is to give them: of the program's dtypes, none another's identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

if TYPE_CHECKING:
    import onnx_ir as ir


def settle_results(model: ir.Model, program: ExportedProgram) -> None:
    """Put casts and copies before the results of ``model``, made of ``program``, where they are needed."""
    _distinguish(model)
    _cast(model, program)
    _separate(model)


def _distinguish(model: ir.Model) -> None:
    """No tensor inside has the name of a result: one that is cast for the result keeps the name of its operator, after
    which the result of a part of a model is named too."""
    results = {value.name: value for value in model.graph.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if results.get(value.name, value) is not value:
                value.name = f"{value.name}_inside"


def _cast(model: ir.Model, program: ExportedProgram) -> None:
    """torch.onnx computes some operators of float16 (abs, sum, amin) in float32, and casts back what other operators
    read, not what is a result."""
    import onnx_ir as ir

    results = program.graph.output_node().args[0]
    for index, (value, result) in enumerate(zip(model.graph.outputs, results)):  # type: ignore[arg-type]
        wanted = _DTYPES.get(result.meta["val"].dtype)
        if value.producer() is not None and wanted is not None and str(value.dtype) not in (wanted, "None"):
            _put_before_result(model, index, "Cast", [ir.AttrInt64("to", ir.DataType[wanted].value)])


_DTYPES = {torch.float32: "FLOAT", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}


def _separate(model: ir.Model) -> None:
    """Where a result is the identity of another, both are the identity of a tensor inside. TensorRT-RTX 1.6 was seen to
    leave the first of such results unwritten."""
    results = set(model.graph.outputs)
    for index, value in enumerate(model.graph.outputs):
        copies = [n for n in value.consumers() if n.op_type == "Identity" and n.outputs[0] in results]
        if copies and value.producer() is not None:
            _put_before_result(model, index, "Identity", [])


def _put_before_result(model: ir.Model, index: int, operator: str, attributes: list[ir.Attr]) -> None:
    """The result ``index`` is ``operator`` of what it was, which other nodes go on to read."""
    import onnx_ir as ir

    graph = model.graph
    value = graph.outputs[index]
    producer = value.producer()
    assert producer is not None
    dtype = ir.DataType(attributes[0].as_int()) if attributes else value.dtype
    outer = ir.Value(name=value.name, shape=value.shape, type=ir.TensorType(dtype) if dtype else value.type)
    value.name = f"{value.name}_inside"
    node = ir.Node(
        "", operator, [value], attributes, outputs=[outer], metadata_props=dict(producer.metadata_props)
    )
    graph.insert_after(producer, node)
    graph.outputs[index] = outer
