"""precision="fastest" on the CPU, where ONNX Runtime in fp32 and PyTorch in 16 bits compete."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge import fastest_precision
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.errors import InvalidOption, VerificationFailed
from torchtrt_bridge.fastest_precision import CANDIDATES
from torchtrt_bridge.precision import Precision
from torchtrt_bridge.precision_support import check_support
from torchtrt_bridge.racing import Lap

X = torch.randn(3, 8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


@pytest.fixture(autouse=True)
def budget(monkeypatch):
    monkeypatch.setattr(fastest_precision, "BUDGET_S", 0.1)


@pytest.fixture
def times(monkeypatch):
    """What the race measures, in ms."""
    found = {"fp32": 4.0, "bf16": 2.0, "fp16": 1.0}

    def race(modules, captured, place, cuda_graph, budget):
        laps = [Lap(name, False, found[name] / 1e3) for name in modules]
        return sorted(laps, key=lambda lap: lap.seconds)

    monkeypatch.setattr(fastest_precision, "race", race)
    return found


def fastest(model, **criterion):
    return ttb.compile(model, X, "fastest", device="cpu", backend="onnx", **criterion)


def outcomes(module):
    return {row["precision"]: row["outcome"] for row in module.report.precisions}


def test_what_is_measured_decides(model):
    module = fastest(model, max_error=1e-2)
    rows = {row["precision"]: row for row in module.report.precisions}
    assert list(rows) == list(CANDIDATES)
    measured = {name: row["milliseconds"] for name, row in rows.items() if row["milliseconds"] is not None}
    assert set(measured) == {"fp32", "bf16", "fp16"}
    chosen = min(measured, key=measured.get)
    assert outcomes(module)[chosen] == "chosen" and module.precision == chosen
    assert rows["fp32"]["score"] < rows["fp16"]["score"] < rows["bf16"]["score"] < 1e-2
    assert rows["tf32"]["reason"] == "a CPU has no TF32"
    torch.testing.assert_close(module(X), model(X), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("max_error", "chosen", "wrong"), [(1e-2, "fp16", set()), (1e-5, "fp32", {"bf16", "fp16"})])
def test_the_fastest_that_is_right_enough(model, times, max_error, chosen, wrong, tmp_path):
    module = fastest(model, max_error=max_error)
    found = outcomes(module)
    assert found[chosen] == "chosen" and {name for name, outcome in found.items() if outcome == "wrong"} == wrong
    assert module.report.precision == chosen
    assert f"{chosen}: chosen, {times[chosen]:.3f} ms, relative L2 " in repr(module.report)
    module.save(tmp_path / "module.safetensors")
    loaded = ttb.load(tmp_path / "module.safetensors", device="cpu")
    assert loaded.report.precisions == module.report.precisions
    assert torch.equal(loaded(X), module(X))


def test_calibration_lets_eight_bits_compete(model, times):
    times.update(int8=0.5, fp8=9.0)
    module = fastest(model, max_error=0.2, calibration=(torch.randn(3, 8) for _ in range(4)))  # which is read once
    assert outcomes(module) == {
        "fp32": "slower", "tf32": "failed", "bf16": "slower", "fp16": "slower", "fp8": "slower", "int8": "chosen",
    }  # fmt: skip
    assert module.precision == "int8"
    row = next(row for row in module.report.precisions if row["precision"] == "int8")
    assert 1e-3 < row["score"] < 0.2


def test_a_metric_of_the_users_own(model, times):
    expected, seen = model(X), []

    def agreement(module):
        seen.append(type(module))
        return -math.log10((module(X) - expected).norm().item() / expected.norm().item() + 1e-9)

    module = fastest(model, metric=agreement, metric_target=2.8)  # bf16 has two digits and a half
    assert outcomes(module)["bf16"] == "wrong" and outcomes(module)["fp16"] == "chosen"
    assert set(seen) == {ttb.TRTModule} and "agreement" in repr(module.report)
    row = next(row for row in module.report.precisions if row["precision"] == "bf16")
    assert row["score"] < 2.8 and "2.8 was asked" in row["reason"]


def test_a_result_that_overflows_is_never_right(times):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    nn.init.constant_(model[0].weight, 3e4)
    module = ttb.compile(
        model, X.abs() + 1, "fastest", device="cpu", backend="onnx", metric=lambda _: 1.0, metric_target=0
    )
    assert outcomes(module)["fp16"] == "wrong" and outcomes(module)["bf16"] == "chosen"


def test_where_none_is_right_the_error_has_every_row(model):
    with pytest.raises(VerificationFailed, match=r"(?s)no precision is right enough.*fp32: wrong.*int8: "):
        fastest(model, metric=lambda module: 0.0, metric_target=1.0)


def test_a_low_precision_that_is_no_gain_is_said():
    rows = {name: fastest_precision.Candidate(name, "slower", milliseconds=ms) for name, ms in (
        ("fp16", 1.0), ("int8", 1.9), ("fp8", 0.7))}  # fmt: skip
    assert fastest_precision._notes(rows) == ["int8 is not faster than fp16 here: 1.900 ms against 1.000 ms, measured"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give max_error="),
        ({"max_error": 0.1, "metric": len, "metric_target": 1}, "give max_error="),
        ({"metric": len}, "metric_target="),
        ({"max_error": -1}, "a number above 0"),
        ({"metric": 3, "metric_target": 1}, "a function of a module"),
        ({"metric": len, "metric_target": "1"}, "give a number"),
        ({"max_error": 0.1, "verify": False}, "is what decides"),
        ({"max_error": 0.1, "quantize": ttb.Quantization(weight_only="int8")}, "not for 'fastest'"),
    ],
)
def test_a_criterion_is_needed_and_one_alone(model, options, says):
    with pytest.raises(InvalidOption, match=says):
        fastest(model, **options)


def test_a_criterion_is_for_the_fastest_alone(model):
    with pytest.raises(InvalidOption, match="max_error= is for precision='fastest'"):
        ttb.compile(model, X, "fp16", max_error=0.1)


def test_nothing_can_be_measured_for_a_gpu_elsewhere(model):
    with pytest.raises(InvalidOption, match="'fastest' measures on the GPU that is here"):
        ttb.build(model, X, "fastest", target="sm89")


class Lacking:
    """A TensorRT without some types."""

    name, version = "tensorrt", "8.5"

    class trt:
        class DataType:
            HALF = INT8 = 0


ELSEWHERE = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "target", "says"),
    [
        ("fp8", "sm86", r"'fp8' needs a GPU of compute capability 8.9 or later, and this is for sm86 \(8.6\).*'int8'"),
        ("bf16", "sm75", r"'bf16' needs a GPU of compute capability 8.0 or later.*'fp16'"),
        ({"default": "fp16", "0": "fp8"}, "sm80", "'fp8' needs"),
    ],
)
def test_a_precision_that_the_gpu_lacks_is_an_error_before_the_build(precision, target, says):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(InvalidOption, match=says):
        check_support(Precision.parse(precision), Place(ELSEWHERE, target))


@pytest.mark.parametrize(
    ("precision", "target"), [("fp8", "sm89"), ("bf16", "sm80"), ("fp16", "sm75"), ("int8", "sm75")]
)
def test_a_precision_that_the_gpu_has(precision, target):
    pytest.importorskip("tensorrt_rtx")
    assert check_support(Precision.parse(precision), Place(ELSEWHERE, target)) == ()


def test_a_portable_plan_says_where_fp8_runs():
    pytest.importorskip("tensorrt_rtx")
    (note,) = check_support(Precision.parse("fp8"), Place(ELSEWHERE, "portable"))
    assert "compute capability 8.9 or later" in note


def test_a_precision_that_tensorrt_lacks(monkeypatch):
    monkeypatch.setattr("torchtrt_bridge.trt.targets.installed", Lacking)
    with pytest.raises(InvalidOption, match="'fp8': tensorrt 8.5 has no such type. The nearest is 'int8' or 'fp16'"):
        check_support(Precision.parse("fp8"), Place(ELSEWHERE, "sm89"))


def test_the_cpu_has_all_of_them():
    assert check_support(Precision.parse("fp8"), Place(ELSEWHERE)) == ()


def test_build_asks_before_it_builds(model):
    pytest.importorskip("tensorrt_rtx")
    says = "'bf16' needs a GPU of compute capability 8.0"
    with pytest.raises(InvalidOption, match=says):
        ttb.build(model, X, "bf16", target="sm75")
    with pytest.raises(InvalidOption, match=says):
        ttb.explain(model, X, "bf16", target="sm75")
    module = ttb.compile(model, X, "bf16", device="cpu", backend="onnx", source=True)
    with pytest.raises(InvalidOption, match=says):
        module.rebuild(target="sm75")
