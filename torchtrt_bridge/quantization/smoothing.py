"""Outliers moved from activations into weights, where a scale per channel can hold them (SmoothQuant).

In transformers, a few channels of an activation are far larger than all others, and one scale for all leaves the others
a handful of steps. Each channel ``j`` is divided by ``max|x_j| ** strength / max|w_j| ** (1 - strength)``, and the
weight's column multiplied by it: the product is the same (G. Xiao et al., "SmoothQuant", ICML 2023, equation 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.fx import Node

from ..fx_nodes import operator_name
from .calibration import Calibration
from .placement import Placement

_SMALLEST = 1e-5  # a channel that is always 0 divides by no less


def smoothing(
    places: Sequence[Placement],
    calibration: Calibration,
    names: Mapping[str, str],
    weights: Mapping[str, torch.Tensor],
    strength: float,
) -> dict[Node, torch.Tensor]:
    """What to divide the channels of each activation by (float32, ``[channels]``); only of those that none but linear
    layers take, and whose channels the calibration knows.

    Args:
        places: what is quantized.
        names: the calibration's names of the tensors, by the nodes' own.
        weights: by the names of their nodes.
        strength: 0 to 1: how much of the outliers goes into the weights.
    """
    readers: dict[Node, list[Placement]] = {}
    for place in places:
        for tensor in place.activations:
            readers.setdefault(tensor, []).append(place)
    found = {}
    for tensor, layers in readers.items():
        histogram = calibration.histograms.get(names[tensor.name])
        linear = all(layer.weight is not None and operator_name(layer.node) == "linear" for layer in layers)
        if not linear or histogram is None or histogram.channels is None:
            continue
        columns = torch.stack([_columns(weights[layer.weight.name]) for layer in layers if layer.weight is not None])
        activations = histogram.channels.clamp_min(_SMALLEST).to(columns.device)
        found[tensor] = activations**strength / columns.amax(0).clamp_min(_SMALLEST) ** (1 - strength)
    return found


def _columns(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().float().abs().amax(0)
