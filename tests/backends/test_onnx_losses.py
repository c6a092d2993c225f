"""Losses are part of an engine: their spelled-out forms give torch's numbers, and TensorRT builds them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as ttb
from torchtrt_bridge.backends.onnx_losses import DECOMPOSITIONS

aten = torch.ops.aten
CASES = list(itertools.product((0, 1, 2), (False, True), (-100, 2), (0.0, 0.3)))


@pytest.mark.parametrize("shape", [(7, 5), (4, 5, 3), (2, 5, 3, 3), (5,)], ids=str)
def test_cross_entropy_is_torchs(shape):
    scores, labels = torch.randn(shape), torch.randint(0, 5, (*shape[:1], *shape[2:]) if len(shape) > 1 else ())
    for reduction, weighted, ignored, smoothing in CASES:
        weight = torch.rand(5) + 0.1 if weighted else None
        if labels.ndim == 0 and labels.item() == ignored:
            continue
        for target in (labels, torch.rand(shape)):
            arguments = (scores, target, weight, reduction, ignored, smoothing)
            if target is not labels and ignored != -100:
                continue
            actual = DECOMPOSITIONS[aten.cross_entropy_loss.default](*arguments)
            torch.testing.assert_close(actual, aten.cross_entropy_loss(*arguments))


@pytest.mark.parametrize("shape", [(7, 5), (2, 5, 3, 3)], ids=str)
def test_negative_log_likelihood_is_torchs(shape):
    log, target = torch.randn(shape).log_softmax(1), torch.randint(0, 5, (shape[0], *shape[2:]))
    for reduction, weighted, ignored, _ in CASES:
        arguments = (log, target, torch.rand(5) if weighted else None, reduction, ignored)
        actual = DECOMPOSITIONS[aten.nll_loss_nd.default](*arguments)
        torch.testing.assert_close(actual, aten.nll_loss_nd(*arguments))


class Judged(nn.Module):
    """Scores, and their loss where labels are given, as models of ``transformers`` have it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]))

    def forward(self, x, labels=None):
        scores = self.layer(x)
        if labels is None:
            return {"scores": scores}
        smooth = F.cross_entropy(scores, labels, label_smoothing=0.1)
        return {"loss": F.cross_entropy(scores, labels, self.weight), "smooth": smooth, "scores": scores}


def judged():
    labels = torch.tensor([0, 4, -100, 2])
    return Judged().eval(), {"x": torch.randn(4, 6), "labels": labels}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_model_with_its_loss_compiles_and_builds(precision):
    model, inputs = judged()
    fast = ttb.compile(model, inputs, precision, dynamic_batch=(1, 4, 8))
    other = {"x": torch.randn(7, 6), "labels": torch.randint(0, 5, (7,))}
    actual, expected = fast(**other), model(**other)
    limit = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}[precision]
    for name in ("loss", "smooth"):
        assert actual[name].item() == pytest.approx(expected[name].item(), rel=limit)
    pytest.importorskip("tensorrt_rtx")
    assert ttb.build(model, inputs, precision, dynamic_batch=(1, 4, 8)).report.runtime == "tensorrt"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_computes_the_loss(precision):
    model, inputs = judged()
    model, inputs = model.cuda(), {name: tensor.cuda() for name, tensor in inputs.items()}
    fast = ttb.compile(model, inputs, precision, dynamic_batch=(1, 4, 8))
    other = {"x": torch.randn(7, 6).cuda(), "labels": torch.tensor([0, 1, -100, 4, 3, -100, 2]).cuda()}
    actual, expected = fast(**other), model(**other)
    for name in ("loss", "smooth"):
        assert actual[name].item() == pytest.approx(expected[name].item(), rel=1e-4 if precision == "fp32" else 5e-3)
