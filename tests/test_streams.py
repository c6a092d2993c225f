"""fp16 is never NaN where eager fp32 is finite: norms of large activations, run by PyTorch as the routes cast them."""

from __future__ import annotations

import copy

import pytest
import torch
from streams import NORMS, Stream

import torchtrt_bridge as ttb


def make(norm):
    torch.manual_seed(0)
    return Stream(NORMS[norm]).eval(), torch.randn(4, 16, 64)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "precision", ["fp16", "bf16", {"default": "fp16", "norms.1": "bf16", "ups.0": "fp32"}], ids=str
)
def test_a_stream_of_1e4_into_a_norm(norm, precision):
    model, x = make(norm)
    module = ttb.compile(model, x, precision, device="cpu", backend="onnx")
    (row,) = module.report.verification
    assert row["new_nonfinite"] == 0 and row["relative_l2"] < (3e-2 if precision == "bf16" else 4e-3)


@pytest.mark.parametrize("norm", ["RMSNorm", "parts"])
def test_the_model_itself_in_half_is_no_use(norm):
    model, x = make(norm)
    expected, half = model(x), copy.deepcopy(model).half()(x.half()).float()
    assert not (half - expected).norm() < 0.5 * expected.norm()  # NaN, or nothing like it
