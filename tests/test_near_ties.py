"""Near ties in another order are no error; a row that differs, or moves past a score that is no tie, is one."""

from __future__ import annotations

import pytest
import torch

from torchtrt_bridge.near_ties import align
from torchtrt_bridge.signature import TensorSpec

SPECS = (
    TensorSpec("0.boxes", "float32", ("?", 4)),
    TensorSpec("0.scores", "float32", ("?",)),
    TensorSpec("0.labels", "int64", ("?",)),
)


def detections():
    boxes = torch.arange(20.0).reshape(5, 4)
    return [boxes, torch.tensor([0.9, 0.8001, 0.8, 0.7, 0.6]), torch.tensor([1, 2, 3, 4, 5])]


@pytest.mark.parametrize("order", [[0, 2, 1, 3, 4], [0, 1, 2, 3, 4]])
def test_near_ties_come_in_eagers_order(order):
    expected = detections()
    swapped = [value[order] for value in detections()]
    swapped[1] = torch.tensor([0.9, 0.80005, 0.80004, 0.7, 0.6])  # what it computed, in its own order
    boxes, scores, labels = align(SPECS, expected, swapped, 1e-3)
    assert torch.equal(boxes, expected[0]) and torch.equal(labels, expected[2])
    torch.testing.assert_close(scores, expected[1], rtol=1e-3, atol=0)


def test_what_is_no_near_tie_stays_where_it_is():
    expected, order = detections(), [1, 0, 2, 3, 4]
    swapped = [value[order] for value in detections()]
    assert all(map(torch.equal, align(SPECS, expected, swapped, 1e-3), swapped))


def test_a_box_that_differs_is_not_hidden():
    expected, changed = detections(), detections()
    changed[0][1] += 100
    boxes, *_ = align(SPECS, expected, changed, 1e-3)
    assert not torch.equal(boxes, expected[0])
    assert torch.equal(boxes.sort(0).values, changed[0].sort(0).values)  # nothing is lost or doubled


def test_results_of_fixed_size_and_of_other_groups_do_not_move():
    fixed = tuple(TensorSpec(spec.name, spec.dtype, (5, *spec.shape[1:])) for spec in SPECS)
    apart = tuple(TensorSpec(f"{index}.x", spec.dtype, spec.shape) for index, spec in enumerate(SPECS))
    swapped = [value[[0, 2, 1, 3, 4]] for value in detections()]
    for specs in (fixed, apart):
        assert all(map(torch.equal, align(specs, detections(), swapped, 1e-3), swapped))
