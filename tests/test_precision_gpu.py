"""Precisions on a GPU: no NaN where eager has none, each layer in its own, the work as the running engine has it."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from older_versions import faults_of_rtx_14
from streams import NORMS, Stream
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge import eight_bits
from torchtrt_bridge.backends import onnx as onnx_route
from torchtrt_bridge.errors import PrecisionNotApplied
from torchtrt_bridge.precision import CastResult

pytestmark = pytest.mark.gpu
ROUTES = [
    "onnx",
    pytest.param(
        "torch_tensorrt",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("torch_tensorrt") is None, reason="torch_tensorrt is not installed"
        ),
    ),
]
LIMIT = {"fp16": 5e-3, "bf16": 4e-2}


def error(module, model, x):
    with torch.no_grad():
        expected = model(x)
    actual = module(x)
    assert actual.isfinite().all()
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_stream_of_1e4_into_a_norm_is_no_nan(norm, precision, route):
    torch.manual_seed(0)
    model, x = Stream(NORMS[norm]).eval().cuda(), torch.randn(4, 16, 64, device="cuda")
    module = ttb.compile(model, x, precision, backend=route, hybrid=False)
    assert error(module, model, x) < LIMIT[precision]
    assert module.report.work["asked"] == {precision: 1.0}, module.report


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1))
        self.head = nn.Linear(32, 16)

    def forward(self, x):
        return self.head(self.body(torch.relu(self.stem(x))).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().cuda(), torch.randn(4, 3, 32, 32, device="cuda")


@pytest.mark.parametrize("route", ROUTES)
def test_layers_have_their_own_precision(net, route):
    model, x = net
    mapping = {"default": "fp16", "stem": "fp32", "body.2": "bf16"}
    with faults_of_rtx_14():
        module = ttb.compile(model, x, mapping, backend=route, hybrid=False)
    assert error(module, model, x) < LIMIT["bf16"]
    assert module.report.work["asked"] == {"fp16": 1.0, "fp32": 1.0, "bf16": 1.0}, module.report
    assert set(module.report.work["by"]) == {"fp16", "fp32", "bf16"}


@pytest.mark.parametrize("route", ROUTES)
def test_the_inspector_of_the_loaded_engine_is_asked(net, route):
    model, x = net
    module = ttb.compile(model, x, "fp16", backend=route, hybrid=False)
    (text,) = module.inspect_layers()
    print(text[:6000])  # what this TensorRT tells
    layers = json.loads(text)["Layers"]
    detailed = any(isinstance(layer, dict) and layer.get("Inputs") for layer in layers)
    assert module.report.work["how"].startswith("by the engine's inspector" if detailed else "as built"), text[:2000]
    assert module.report.work["by"] == {"fp16": 1.0}


def test_an_engine_without_its_casts_is_refused(net, monkeypatch):
    model, x = net
    monkeypatch.setattr(onnx_route, "cast_program", lambda program, precision: CastResult(program, {}))
    with pytest.raises(PrecisionNotApplied, match=r"0.0% of the matrix and convolution work that was to run in fp16"):
        ttb.compile(model, x, "fp16", backend="onnx", hybrid=False)


def test_the_fastest_precision_is_measured_here(net):
    model, x = net
    module = ttb.compile(model, x, "fastest", max_error=2e-2, backend="onnx")
    rows = {row["precision"]: row for row in module.report.precisions}
    print(module.report)
    measured = {name: row["milliseconds"] for name, row in rows.items() if row["milliseconds"] is not None}
    assert {"fp32", "bf16", "fp16"} <= set(measured)
    chosen = min(measured, key=measured.get)
    assert rows[chosen]["outcome"] == "chosen" and module.precision == ("fp32" if chosen == "tf32" else chosen)
    assert rows["int8"]["outcome"] == "failed" and "calibration" in rows["int8"]["reason"]
    assert error(module, model, torch.randn_like(x)) < 2e-2


class Wide(nn.Module):
    """Most of its work is in the middle, for the last layer is not quantized."""

    def __init__(self):
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(256, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 8)

    def forward(self, x):
        return self.down(self.mid(self.up(x).relu()).relu())


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_are_what_the_engine_computes_in(precision):
    model, x = Wide().eval().cuda(), torch.randn(64, 256, device="cuda")
    data = [torch.randn_like(x) for _ in range(4)]
    module = ttb.compile(model, x, precision, backend="onnx", hybrid=False, calibration=data)
    print(module.report, *(text[:4000] for text in module.inspect_layers()))
    assert module.report.work["asked"][precision] > 0.97
    assert error(module, model, x) < 0.2


def test_eight_bits_compete_for_the_fastest():
    model, x = Wide().eval().cuda(), torch.randn(64, 256, device="cuda")
    data = [torch.randn_like(x) for _ in range(4)]
    module = ttb.compile(model, x, "fastest", max_error=0.2, backend="onnx", calibration=data)
    print(module.report)
    rows = {row["precision"]: row for row in module.report.precisions}
    assert rows["int8"]["milliseconds"] is not None and rows["fp8"]["milliseconds"] is not None
    slower = rows["int8"]["milliseconds"] >= rows["fp16"]["milliseconds"]
    assert slower == any(note.startswith("int8 is not faster than fp16 here") for note in module.report.notes)


def test_eight_bits_are_measured_against_fp16(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHTRT_BRIDGE_CACHE", str(tmp_path / "cache"))
    ratio = eight_bits._ratio("int8", 0, False)
    print(f"an int8 product takes {ratio} times as long as an fp16 one")
    assert ratio is not None and 0.1 < ratio < 20
    note = eight_bits.no_gain("int8", torch.device("cuda", 0), False)
    assert (note is None) == (ratio < 1)
