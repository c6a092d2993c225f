"""int8 and fp8 without what they need, and settings that nothing could honour."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import InvalidOption


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_without_data_the_error_says_what_to_give(precision):
    with pytest.raises(InvalidOption, match=rf"precision='{precision}' needs .* Give calibration=, a DataLoader"):
        ttb.compile(nn.Linear(4, 2).eval(), torch.randn(1, 4), precision)


@pytest.mark.parametrize("given", [{"calibration": [torch.randn(1, 4)]}, {"quantize": ttb.Quantization()}])
def test_data_and_settings_are_refused_where_nothing_is_quantized(given):
    with pytest.raises(InvalidOption, match=f"{next(iter(given))}= is for precision='int8' and 'fp8'"):
        ttb.compile(nn.Linear(4, 2).eval(), torch.randn(1, 4), "fp16", **given)


def test_settings_that_cannot_be():
    with pytest.raises(InvalidOption, match="Did you mean 'entropy'"):
        ttb.Quantization(method="entropie")
    for wrong in ({"percentile": 120}, {"group": 100}, {"batches": 0}, {"other": "int8"}, {"weight_only": "int2"}):
        with pytest.raises(InvalidOption, match=next(iter(wrong))):
            ttb.Quantization(**wrong)
    with pytest.raises(InvalidOption, match="give torchtrt_bridge.Quantization"):
        ttb.compile(nn.Linear(4, 2).eval(), torch.randn(1, 4), "int8", quantize={"method": "max"})


def test_explain_asks_every_route_about_the_quantized_graph_without_any_data():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    plain, found = (ttb.explain(model, torch.randn(2, 8), p, target="portable") for p in ("fp16", "int8"))
    assert found.operations == plain.operations + 3  # the pair of the input, and the weight's
    routes = {answer.route: answer for answer in found.routes}
    assert routes["onnx"].takes
    assert "the quantization is in the graph" in routes["torch2trt"].reasons[0]


def test_an_exported_program_in_a_file_takes_data_too(tmp_path):
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval(), torch.randn(4, 8)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    fast = ttb.compile_file(tmp_path / "model.pt2", "int8", device="cpu", calibration=[x])
    assert fast.precision == "int8" and 1e-5 < (fast(x) - model(x)).norm() / model(x).norm() < 0.05
