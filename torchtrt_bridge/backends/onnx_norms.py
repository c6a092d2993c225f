"""Norms that torch.onnx's optimizer made of several operators (opset 23): with one dtype, as TensorRT takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_NORMS = ("RMSNormalization", "LayerNormalization")


def settle_norms(model: ir.Model) -> None:
    """Cast what a norm reads to the dtype of its scale, in which it computes and gives its result. Of half values and
    a float scale, ONNX makes floats; TensorRT's parser (RTX 1.6) makes a norm that gives halves."""
    import onnx_ir as ir

    for node in list(model.graph.all_nodes()):
        if node.op_type not in _NORMS or len(node.inputs) < 2:
            continue
        value, scale = node.inputs[:2]
        if value is None or scale is None or scale.dtype is None or value.dtype in (None, scale.dtype):
            continue
        cast = ir.Node(
            "", "Cast", [value], [ir.AttrInt64("to", scale.dtype.value)], metadata_props=dict(node.metadata_props)
        )
        cast.outputs[0].dtype, cast.outputs[0].shape = scale.dtype, value.shape
        node.graph.insert_before(node, cast)  # type: ignore[union-attr]
        node.replace_input_with(0, cast.outputs[0])
