"""You got what you asked for, or an error says which layers run in something else, and why."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.applied import applied, require
from torchtrt_bridge.backends import onnx as onnx_route
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import InvalidOption, PrecisionNotApplied
from torchtrt_bridge.precision import CastResult, Precision
from torchtrt_bridge.trt.work import Work

pytest.importorskip("tensorrt_rtx")
INPUT = (torch.randn(4, 64),)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x):
        return self.down(self.up(x).relu())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MLP().eval()


@pytest.fixture
def without_casts(monkeypatch):
    """The ONNX route with the casts left out of its graph, as a fault in it would."""
    monkeypatch.setattr(onnx_route, "cast_program", lambda program, precision: CastResult(program, {}))


def build(model, precision, **options):
    return ttb.build(model, INPUT, precision, backend="onnx", hybrid=False, build=ttb.BuildOptions(**options))


def test_all_of_the_work_runs_in_what_was_asked_for(model, tmp_path):
    module = build(model, "fp16")
    work = module.report.work
    assert (work["asked"], work["by"], work["missed"]) == ({"fp16": 1.0}, {"fp16": 1.0}, [])
    assert work["flops"] == 2 * 2 * 4 * 64 * 256
    assert "fp16 100.0% of 0.000262 GFLOPs (as built, kernels not chosen)" in repr(module.report)
    module.save(tmp_path / "module.safetensors")
    assert ttb.load(tmp_path / "module.safetensors").report.work == work


def test_a_plan_without_its_casts_is_refused(model, without_casts):
    with pytest.raises(PrecisionNotApplied) as caught:
        build(model, "fp16")
    text = str(caught.value)
    assert "0.0% of the matrix and convolution work that was to run in fp16 does, and at least 90%" in text
    assert "2 layers such as up/linear (matrix multiply, 100.0% of the work) run in fp32 instead of fp16" in text
    assert "precision={'default': 'fp16', 'up': 'fp32'}" in text
    assert [row["layer"] for row in caught.value.rows] == ["up/linear", "down/linear_1"]


def test_of_several_routes_the_error_is_still_that_one(model, without_casts, monkeypatch):
    monkeypatch.setattr("torchtrt_bridge.selection.BACKENDS", (onnx_route.OnnxBackend(),) * 2)
    with pytest.raises(PrecisionNotApplied, match="No route could compile") as caught:
        ttb.build(model, INPUT, "fp16", hybrid=False)
    assert len(caught.value.rows) == 2


def test_less_is_accepted_where_that_is_said(model, without_casts):
    report = build(model, "fp16", minimum_share=0).report
    assert report.work["asked"] == {"fp16": 0.0} and report.work["by"] == {"fp32": 1.0}
    assert "such as up/linear (matrix multiply, 100.0% of the work) run in fp32 instead of fp16" in repr(report)


def test_layers_are_held_to_their_own_precision(model):
    work = build(model, {"default": "bf16", "up": "fp32", "down": "fp16"}).report.work
    assert work["asked"] == {"fp32": 1.0, "fp16": 1.0}
    assert work["by"] == {"fp32": 0.5, "fp16": 0.5}


def test_fp32_is_never_below(model):
    assert build(model, "fp32").report.work["asked"] == {"fp32": 1.0}


def test_a_model_without_products_has_no_such_work():
    assert build(nn.ReLU().eval(), "fp16").report.work == {}


def test_products_that_a_route_makes_of_something_else_are_held_to_nothing():
    class Resize(nn.Module):
        def forward(self, x):
            return nn.functional.interpolate(x, size=(5, 7), mode="bilinear", antialias=True)

    module = ttb.build(Resize().eval(), torch.randn(1, 2, 8, 8), "fp16", backend="onnx", hybrid=False)
    assert module.report.work["by"] == {"fp32": 1.0} and module.report.work["asked"] == {}


def test_a_share_outside_its_range_is_an_error():
    with pytest.raises(InvalidOption, match="minimum_share=90"):
        ttb.BuildOptions(minimum_share=90)


def calibrated(model, x, precision):
    data = [torch.randn_like(x) for _ in range(4)]
    return ttb.build(model, x, precision, backend="onnx", hybrid=False, calibration=data)


class Wide(nn.Module):
    """Most of its work is in the middle, for the last layer is not quantized."""

    def __init__(self):
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(64, 256), nn.Linear(256, 256), nn.Linear(256, 8)

    def forward(self, x):
        return self.down(self.mid(self.up(x).relu()).relu())


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_plan_in_eight_bits_is(precision):
    work = calibrated(Wide().eval(), *INPUT, precision).report.work
    assert work["by"] == pytest.approx({precision: 0.9756, "fp16": 0.0244}, abs=1e-4)
    assert work["asked"][precision] > 0.97 and work["how"] == "as built, kernels not chosen"
    (missed,) = work["missed"]
    assert missed["layer"] == "down/linear_2" and "last_layer=True" in missed["reason"]


def test_one_layer_in_eight_bits():
    work = calibrated(Wide().eval(), *INPUT, {"default": "fp16", "mid": "int8"}).report.work
    assert work["asked"] == {"int8": 1.0, "fp16": 1.0}
    assert work["by"]["int8"] == pytest.approx(256 * 256 / (64 * 256 + 256 * 256 + 256 * 8))


def test_a_depthwise_convolution_in_int8_is_one_or_is_refused():
    """RTX 1.6 has no int8 kernel for it, and 1.7 has."""

    class Depthwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Linear(32, 4)

        def forward(self, x):
            return self.head(self.stem(x).relu().mean((2, 3)))

    try:
        work = calibrated(Depthwise().eval(), torch.randn(2, 32, 8, 8), "int8").report.work
    except PrecisionNotApplied as error:
        assert "no int8 kernel for the convolution stem/conv2d" in str(error)
    else:
        assert work["asked"]["int8"] > 0.9


def row(layer, flops, typed, built=None, hindrance=""):
    return dataclasses.asdict(Work(layer, "matrix_multiply", flops, typed, built, hindrance))


@pytest.fixture(scope="module")
def graph(model):
    return capture(model, INPUT).program.graph


def test_a_truly_int8_engine_passes(graph):
    found = applied([row("up/l", 95, "int8", "int8"), row("down/l", 5, "fp16")], (), Precision("int8"), graph)
    assert found.asked == {"int8": 0.95} and found.by == {"int8": 0.95, "fp16": 0.05}
    require(found, 0.9)
    with pytest.raises(PrecisionNotApplied, match=r"down/l .*5.0% of the work\) runs in fp16 instead of int8"):
        require(found, 0.96)


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (row("up/l", 1, "int8", "fp16"), "TensorRT chose no int8 kernel for this matrix multiply"),
        (row("up/l", 1, "int8", "fp32", "a cast stands between"), "chose no int8 kernel"),
        (row("up/l", 1, "fp16", "fp16", "its operands are fp16 and int8"), "its operands are fp16 and int8"),
        (row("up/l", 1, "fp16"), "it is not quantized"),
        (row("[MATRIX_MULTIPLY]-[aten_ops.linear.default]-[up/l]", 1, "fp32"), "up/l .*not quantized"),
    ],
)
def test_the_likely_reason(graph, work, reason):
    with pytest.raises(PrecisionNotApplied, match=reason):
        require(applied([work], (), Precision("int8"), graph), 0.9)


def test_a_model_that_is_quantized_already_is_low_enough_for_fp16(graph):
    assert applied([row("up/l", 1, "int8", "int8")], (), Precision("fp16"), graph).asked == {"fp16": 1.0}


def test_a_loaded_engine_has_the_last_word(graph):
    import json

    layer = {"Name": "up/l", "LayerType": "gemm", "Inputs": [{"Datatype": "Float", "Dimensions": [4, 4]}] * 2}
    inspected = json.dumps({"Layers": [layer]})
    found = applied([row("up/l", 1, "int8", "int8")], (inspected,), Precision("int8"), graph)
    assert (found.asked, found.how) == ({"int8": 0.0}, "by the engine's inspector")


def test_a_cut_model_counts_the_work_of_every_part(model):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = MLP(), nn.Linear(64, 64)

        def forward(self, x):
            y = self.first(x).sigmoid()
            return self.second(y * torch.special.bessel_j0(y))

    module = ttb.build(Cut().eval(), INPUT, "fp16", backend="onnx")
    assert module.report.hybrid["outside"]
    assert module.report.work["flops"] == 2 * 4 * (2 * 64 * 256 + 64 * 64)
    assert module.report.work["asked"] == {"fp16": 1.0}


def test_the_cpu_has_no_plan_to_look_at(model):
    assert ttb.compile(model, INPUT, "fp16", device="cpu", backend="onnx").report.work == {}
