"""What a module on the CPU holds, an ONNX model or a cast program, with intermediate tensors as further results."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..backends.base import Artifact, Segment
from .points import counterparts, kinds, with_results

if TYPE_CHECKING:
    from ..runtime.module import TRTModule


def marked(made: Artifact, learned: Segment, nodes: Sequence[str]) -> tuple[TRTModule, list[str]]:
    """The module that ``made`` holds, with further results, and the nodes that these are.

    ``learned`` is what the given model becomes when ``nodes`` are among its results: it shows what they are called in a
    graph of that form, and :func:`~.points.counterparts` what in the module's.
    """
    from ..runtime.module import TRTModule

    (segment,) = made.segments
    own = len(made.signature.outputs)
    if segment.runtime == "torch":
        further, found = _marked_program(segment, learned, nodes, own)
    else:
        further, found = _marked_onnx(segment, learned, nodes, own)
    artifact = dataclasses.replace(made, segments=(further,))
    return TRTModule(torch.device("cpu"), _artifact=artifact), found


def _marked_program(segment: Segment, learned: Segment, nodes: Sequence[str], own: int) -> tuple[Segment, list[str]]:
    from ..runtime.program import restore, store

    assert segment.program is not None and learned.program is not None
    other = restore(learned.program)
    results: Any = other.graph.output_node().args[0][own:]  # type: ignore[index]
    named = {}
    for name, node in zip(nodes, results):
        while node.target is torch.ops.aten._to_copy.default:  # fp32 again, for the result
            node = node.args[0]
        named[name] = node.name
    program = restore(segment.program)
    pairs = counterparts(named.values(), kinds(other), kinds(program))
    found = [name for name in nodes if named[name] in pairs]
    marked = with_results(program, [pairs[named[name]] for name in found])
    outputs = (*segment.outputs, *(f"observed.{index}" for index in range(len(found))))
    return dataclasses.replace(segment, program=store(marked), outputs=outputs), found


def _marked_onnx(segment: Segment, learned: Segment, nodes: Sequence[str], own: int) -> tuple[Segment, list[str]]:
    import onnx

    assert segment.engine is not None and learned.engine is not None
    other, model = (onnx.load_from_string(s.engine.numpy().tobytes()) for s in (learned, segment))  # type: ignore[union-attr]
    maker = {value: node for node in other.graph.node for value in node.output}
    named = {}
    for name, value in zip(nodes, learned.outputs[own:]):
        while value in maker and maker[value].op_type == "Identity":
            value = maker[value].input[0]
        named[name] = value
    pairs = counterparts(named.values(), _onnx_kinds(other), _onnx_kinds(model))
    found = [name for name in nodes if named[name] in pairs]
    outputs = [pairs[named[name]] for name in found]
    added = set(outputs) - {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in sorted(added))
    engine = torch.frombuffer(bytearray(model.SerializeToString()), dtype=torch.uint8)
    return dataclasses.replace(segment, engine=engine, outputs=(*segment.outputs, *outputs)), found


def _onnx_kinds(model: Any) -> list[tuple[str, Hashable]]:
    """``(value, kind)`` of the operators of an ONNX model, whose names are ``module.path/operator``."""
    return [
        (value, (node.name.rpartition("/")[0], node.op_type, index))
        for node in model.graph.node
        for index, value in enumerate(node.output)
    ]
