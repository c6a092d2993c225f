"""torchvision's batched NMS in a form that torch.export captures, for as long as a capture takes.

Its own asks whether there are any boxes, and how many, to choose between two ways to the same result. Where the number
depends on the data, torch.export cannot follow; the form here is the same computation without the question.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._sympy.value_ranges import ValueRanges


@contextlib.contextmanager
def exportable_nms() -> Iterator[None]:
    """Within, ``torchvision.ops.boxes.batched_nms`` takes a number of boxes that depends on the data. For any other
    call, of other threads too, it is what it was."""
    home: Any = sys.modules.get("torchvision.ops.boxes")
    own = getattr(home, "batched_nms", None)
    if own is None:
        yield
        return

    def batched_nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: float) -> Any:
        if isinstance(boxes, torch.Tensor) and isinstance(boxes.shape[0], torch.SymInt):
            return _batched_nms(boxes, scores, idxs, iou_threshold)
        return own(boxes, scores, idxs, iou_threshold)

    home.batched_nms = batched_nms
    try:
        yield
    finally:
        home.batched_nms = own


def _batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """NMS within each class: boxes are moved apart by class, further than any of them reaches."""
    reach = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # of no boxes, too
    apart = idxs.to(boxes) * (reach + 1)
    return torch.ops.torchvision.nms(boxes + apart[:, None], scores, iou_threshold)


def allow_few_boxes(program: ExportedProgram) -> None:
    """Take out of ``program`` the assertions that NMS leaves at least two boxes: torchvision's fake kernel says so to
    torch.export, and it is not true."""
    made = {
        symbol
        for node in program.graph.nodes
        if str(node.target) == "torchvision.nms.default"
        for symbol in free_unbacked_symbols(node.meta["val"])
    }
    for node in list(program.graph.nodes) if made else ():
        condition = node.args[0] if node.target is torch.ops.aten._assert_scalar.default else None
        if not isinstance(condition, Node) or condition.target is not operator.ge:
            continue
        size, least = condition.args
        if isinstance(size, Node) and least == 2 and size.meta["val"].node.expr in made:
            program.graph.erase_node(node)
    for symbol in made & set(program.range_constraints):
        program.range_constraints[symbol] = ValueRanges(0, program.range_constraints[symbol].upper)
    program.graph_module.recompile()
