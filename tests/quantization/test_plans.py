"""TensorRT plans of quantized graphs, built without a GPU."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from models import Block, mlp
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import ConversionFailed, InvalidOption, PrecisionNotApplied
from torchtrt_bridge.trt.flavor import flavor

pytest.importorskip("tensorrt_rtx")
X = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def calibrated():
    model = mlp()
    return model, ttb.calibrate(model, X, [X])


@pytest.mark.parametrize("backend", ["onnx", "torch_tensorrt"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_both_graph_routes_build_from_one_calibration(calibrated, precision, backend):
    if backend == "torch_tensorrt" and importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")  # not imported: only its own process has it
    model, calibration = calibrated
    built = ttb.build(model, X, precision, calibration=calibration, backend=backend, hybrid=False)
    work = built.report.work
    assert work["by"][precision] > 0.9 and work["how"] == "as built, kernels not chosen"
    assert built.precision == precision


def test_torch2trt_says_why_not(calibrated):
    model, calibration = calibrated
    with pytest.raises(ConversionFailed, match="traces the eager model, and the quantization"):
        ttb.build(model, X, "int8", calibration=calibration, backend="torch2trt", hybrid=False)


@pytest.mark.parametrize(("weights", "share"), [("int8", 0.55), ("int4", 0.3)])
def test_weight_only_plans_hold_the_small_weights(weights, share):
    model, x = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).eval(), torch.randn(4, 1024)
    settings = ttb.Quantization(weight_only=weights)
    small = ttb.build(model, x, "fp16", quantize=settings, backend="onnx", hybrid=False)
    half = 2 * 1024 * 1024 * 2
    assert len(small.state_dict()["engine"]) < share * half + 600_000


@pytest.mark.parametrize(("weights", "limit"), [("int8", 0.01), ("fp8", 0.05), ("int4", 0.15)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weight_only_computes_in_the_asked_precision(weights, limit, precision):
    model = mlp()
    fast = ttb.compile(model, X, precision, quantize=ttb.Quantization(weight_only=weights, group=32))
    exact = model(X)
    difference = ((fast(X) - exact).norm() / exact.norm()).item()
    assert 1e-4 < difference < limit


def test_weight_only_is_refused_where_it_says_nothing():
    with pytest.raises(InvalidOption, match="no linear layer with rows of whole groups of 128"):
        ttb.compile(nn.Linear(120, 8).eval(), torch.randn(4, 120), quantize=ttb.Quantization(weight_only="int4"))
    with pytest.raises(InvalidOption, match="leaves the activations alone, and precision='int8'"):
        ttb.compile(mlp(), X, "int8", quantize=ttb.Quantization(weight_only="int8"))


class Patches(nn.Module):
    """A convolution that is a small part of the work, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.body, self.head = nn.Conv2d(3, 64, 4, 4), nn.Linear(64, 64), nn.Linear(64, 64)
        self.last = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        for _ in range(12):
            h = h + self.head(self.body(h).relu())
        return self.last(h.mean(1))


needs_lost_scales = pytest.mark.skipif(not flavor().loses_fp8_scales, reason="not known of this TensorRT")
"""TensorRT for RTX 1.4 and 1.6 built fp8 convolutions whose results were a thousand times too large on an H100."""


@needs_lost_scales
@pytest.mark.parametrize("backend", ["onnx", "torch_tensorrt"])
def test_convolutions_stay_out_of_fp8_where_their_scales_are_lost(backend):
    if backend == "torch_tensorrt" and importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")
    model, x = Patches().eval(), torch.randn(2, 3, 16, 16)
    given = {"calibration": ttb.calibrate(model, x, [x]), "backend": backend, "hybrid": False}
    built = ttb.build(model, x, "fp8", **given)
    assert built.report.work["by"]["fp8"] > 0.9
    assert any("convolutions that stay out of fp8: 1." in note for note in built.report.notes)
    model, x = Block().eval(), torch.randn(2, 3, 8, 8)
    given["calibration"] = ttb.calibrate(model, x, [x])
    with pytest.raises(PrecisionNotApplied, match=r"conv./.*leaves out the scales of fp8 convolutions"):
        ttb.build(model, x, "fp8", **given)
    on_cpu = ttb.compile(model, x, "fp8", device="cpu", calibration=given["calibration"])
    assert not any("out of fp8" in note for note in on_cpu.report.notes)  # PyTorch has the scales


@needs_lost_scales
@pytest.mark.parametrize("backend", ["onnx", "torch_tensorrt"])
def test_convolutions_that_come_in_fp8_are_refused_where_their_scales_are_lost(backend, monkeypatch):
    if backend == "torch_tensorrt" and importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")
    monkeypatch.setattr("torchtrt_bridge.quantization.stage.no_fp8_convolutions", lambda: "")
    model, x = Block().eval(), torch.randn(2, 3, 8, 8)
    given = {"calibration": ttb.calibrate(model, x, [x]), "backend": backend, "hybrid": False}
    with pytest.raises(PrecisionNotApplied, match=r"wrongly, the convolutions conv1/.*nn.Conv2d: 'fp16'"):
        ttb.build(model, x, "fp8", **given)


def test_int8_convolutions_are_refused_by_name_or_built():
    model, x = Block().eval(), torch.randn(2, 3, 8, 8)
    calibration = ttb.calibrate(model, x, [x])
    asked = {"default": "int8", nn.Conv2d: "fp16"}
    try:
        ttb.build(model, x, "int8", calibration=calibration, backend="onnx", hybrid=False)
    except PrecisionNotApplied as error:
        assert "conv1" in str(error) and "nn.Conv2d: 'fp16'" in str(error)
    built = ttb.build(
        model, x, asked, calibration=calibration, backend="onnx", hybrid=False,
        build=ttb.BuildOptions(minimum_share=0.0),
    )  # fmt: skip
    assert built.report.work["by"]["int8"] > 0
