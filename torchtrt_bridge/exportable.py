"""What torchvision's detectors do after their last layer, in forms that torch.export captures, for as long as a
capture takes.

The batched NMS asks whether there are any boxes, and how many, to choose between two ways to the same result; where the
number depends on the data, torch.export cannot follow. SSD chooses boxes for one class after another, with a size that
depends on the data each time: hundreds of small operators, of which none could be TensorRT's. The forms here are the
same computations, without the question, and with one such size for all classes.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._sympy.value_ranges import ValueRanges


@contextlib.contextmanager
def exportable_detection() -> Iterator[None]:
    """Within, ``torchvision.ops.boxes.batched_nms`` takes a number of boxes that depends on the data, and SSD chooses
    for all classes at once, where they are traced. For any other call, of other threads too, they are what they were.
    """
    boxes: Any = sys.modules.get("torchvision.ops.boxes")
    ssd: Any = getattr(sys.modules.get("torchvision.models.detection.ssd"), "SSD", None)
    own_nms: Any = getattr(boxes, "batched_nms", None)
    own_choice: Any = getattr(ssd, "postprocess_detections", None)

    def batched_nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: float) -> Any:
        if isinstance(boxes, torch.Tensor) and isinstance(boxes.shape[0], torch.SymInt):
            return _batched_nms(boxes, scores, idxs, iou_threshold)
        return own_nms(boxes, scores, idxs, iou_threshold)

    def postprocess_detections(self: Any, head_outputs: Any, image_anchors: Any, image_shapes: Any) -> Any:
        if type(head_outputs["cls_logits"]) is torch.Tensor:  # nobody traces this
            return own_choice(self, head_outputs, image_anchors, image_shapes)
        return _postprocess_detections(self, head_outputs, image_anchors, image_shapes)

    if own_nms is not None:
        boxes.batched_nms = batched_nms
    if own_choice is not None:
        ssd.postprocess_detections = postprocess_detections
    try:
        yield
    finally:
        if own_nms is not None:
            boxes.batched_nms = own_nms
        if own_choice is not None:
            ssd.postprocess_detections = own_choice


def _postprocess_detections(
    model: Any,
    outputs: Mapping[str, torch.Tensor],
    anchors: Sequence[torch.Tensor],
    shapes: Sequence[tuple[int, int]],
) -> list[dict[str, torch.Tensor]]:
    """The detections of an SSD: of each class the best boxes above the threshold, less those that NMS suppresses."""
    from torchvision.ops import boxes as box_ops

    found = []
    for offsets, logits, anchor, shape in zip(outputs["bbox_regression"], outputs["cls_logits"], anchors, shapes):
        boxes = box_ops.clip_boxes_to_image(model.box_coder.decode_single(offsets, anchor), shape)
        scores = torch.softmax(logits, -1)[:, 1:].T  # of the classes without the background, by class
        scores = torch.where(scores > model.score_thresh, scores, -1.0)
        best, which = scores.topk(min(model.topk_candidates, scores.shape[1]), dim=1)
        labels = torch.arange(1, len(best) + 1, device=best.device)[:, None].expand_as(best)
        above = torch.where(best.flatten() >= 0)[0]
        boxes, best, labels = boxes[which.flatten()][above], best.flatten()[above], labels.flatten()[above]
        kept = box_ops.batched_nms(boxes, best, labels, model.nms_thresh)[: model.detections_per_img]
        found.append({"boxes": boxes[kept], "scores": best[kept], "labels": labels[kept]})
    return found


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
