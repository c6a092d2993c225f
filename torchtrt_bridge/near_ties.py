"""Rows that a model sorts by a score, where near ties came in another order.

A detector gives boxes, labels and scores by falling score. Scores nearer to each other than the precision's error come
in either order, and their boxes and labels with them: every number is right, at another place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .signature import TensorSpec

_MOST_ROWS = 4096  # distances between all pairs are computed


def align(
    specs: Sequence[TensorSpec], expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor], max_error: float
) -> list[torch.Tensor]:
    """``actual`` with near ties in the order of ``expected``; a row moves only among rows of nearly its score.

    Args:
        specs: of the results. Those of one group (``0.boxes``, ``0.scores``) whose number of rows depends on the data
            move together, by the first of them that is a list of floats in falling order.
        max_error: the largest difference of two scores that are a near tie, as a share of the largest score.
    """
    aligned = list(actual)
    for group in _groups(specs, expected, actual):
        scores = next((index for index in group if _falls(expected[index]) and _falls(actual[index])), None)
        if scores is None:
            continue
        order = _order(group, scores, expected, actual, max_error)
        for index in group:
            aligned[index] = actual[index][order]
    return aligned


def _groups(
    specs: Sequence[TensorSpec], expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]
) -> list[list[int]]:
    groups: dict[tuple[str, int], list[int]] = {}
    for index, (spec, wanted, found) in enumerate(zip(specs, expected, actual, strict=True)):
        if spec.shape[:1] == ("?",) and wanted.shape == found.shape and 1 < len(wanted) <= _MOST_ROWS:
            groups.setdefault((spec.name.rpartition(".")[0], len(wanted)), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _falls(scores: torch.Tensor) -> bool:
    return scores.ndim == 1 and scores.is_floating_point() and bool((scores[1:] <= scores[:-1]).all())


def _order(
    group: Sequence[int],
    scores: int,
    expected: Sequence[torch.Tensor],
    actual: Sequence[torch.Tensor],
    max_error: float,
) -> torch.Tensor:
    """For each row of ``expected``, the row of ``actual`` nearest to it among those of nearly its score."""
    device = expected[scores].device
    distance = sum(_distance(expected[index], actual[index].to(device)) for index in group)
    wanted, found = expected[scores].double(), actual[scores].to(device).double()
    tied = (wanted[:, None] - found[None]).abs() <= max_error * wanted.abs().max()
    distance = torch.where(tied, distance, torch.inf).cpu()
    rows = []
    for row in distance:
        best = int(row.argmin())
        if not bool(row[best].isfinite()):
            return torch.arange(len(distance), device=actual[scores].device)  # no order makes these equal
        distance[:, best] = torch.inf
        rows.append(best)
    return torch.tensor(rows, device=actual[scores].device)


def _distance(expected: torch.Tensor, actual: torch.Tensor) -> torch.Tensor:
    """Between all rows, as shares of the largest value."""
    wide = expected.reshape(len(expected), -1).double()
    return torch.cdist(wide, actual.reshape(len(actual), -1).double()) / wide.abs().max().clamp(min=1e-300)
