"""ttb.tune_precision() raises few layers, and enough: against all sets tried, and where it was interrupted."""

from __future__ import annotations

import json
import random

import pytest
import torch
from comparing import nothing_changes
from overflowing import Between, Stream, Uneven, fewest_by_trying_all, made
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import (
    InvalidFile,
    InvalidOption,
    PrecisionNotApplied,
    TargetUnreachable,
    VerificationFailed,
)
from torchtrt_bridge.tools.candidates import Candidates
from torchtrt_bridge.tools.quantizing import Quantizing
from torchtrt_bridge.tools.search import fewest, first_that_meets


@pytest.mark.parametrize("kind", [Between, Stream])
def test_overflow_is_mended_by_at_most_twice_the_fewest_layers(kind):
    model, x = made(kind)
    with pytest.raises(VerificationFailed, match="NaN or Inf"):
        ttb.compile(model, x, "fp16")
    with nothing_changes(model, x):
        found = ttb.tune_precision(model, x, target_error=1e-2)
    best = fewest_by_trying_all(capture(model, x), 1e-2)
    assert 0 < len(found.raised) <= 2 * best
    fast = ttb.compile(model, x, found.precision)  # which verifies
    error = (fast(x) - model(x)).norm() / model(x).norm()
    assert error <= 1e-2 and found.score == pytest.approx(error.item(), rel=1e-3)
    assert torch.equal(found.module(x), fast(x))
    assert found.low_score == float("inf") and found.high_score < 1e-5


def test_a_tighter_target_raises_more_layers_and_is_met():
    model, x = made(Stream)
    loose, tight = (ttb.tune_precision(model, x, target_error=error) for error in (1e-2, 2e-4))
    assert loose.raised == ("",) and set(loose.raised) < set(tight.raised) and tight.score <= 2e-4
    assert loose.precision["default"] == "fp32" and loose.precision["embed"] == "fp16"
    assert len(tight.raised) <= 2 * fewest_by_trying_all(capture(model, x), 2e-4)


def test_a_model_that_fp16_holds_keeps_nothing():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(2, 8)
    found = ttb.tune_precision(model, x, target_error=1e-2)
    assert found.precision == {"default": "fp16"} and found.raised == () and found.module.precision == "fp16"
    assert found.layers == ("0", "1", "2") and not found.sensitivities and len(found.trials) == 3
    assert "0 of 3 layers to fp32" in repr(found) and found.plot() is not None


def test_a_metric_decides_and_sees_a_module_like_the_model():
    model, x = made(Between)
    held_out = torch.randn(32, 16)
    labels = model(held_out).argmax(-1)
    seen = []

    def accuracy(module):
        seen.append(module)
        return (module(input=held_out).argmax(-1) == labels).double().mean().item()

    found = ttb.tune_precision(model, x, metric=accuracy, target=0.99, dynamic_batch=(1, 4, 64))
    assert found.score >= 0.99 > found.low_score and found.measure.endswith("accuracy")
    assert set(found.raised) == {"1.up", "1.down"}
    assert all(isinstance(module, nn.Module) and not module.training for module in seen)


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    model, x = made(Between)
    calls = []

    def score(module, stop_after=None):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(module)
        return -(module(x) - model(x)).norm().nan_to_num(1e9, 1e9).item()

    def interrupted(module):
        return score(module, stop_after=3)

    interrupted.__qualname__ = "score"
    score.__qualname__ = "score"
    limit = -0.01 * model(x).norm().item()
    with pytest.raises(KeyboardInterrupt):
        ttb.tune_precision(model, x, metric=interrupted, target=limit, resume=tmp_path / "search.json")
    calls.clear()
    found = ttb.tune_precision(model, x, metric=score, target=limit, resume=tmp_path / "search.json")
    again = len(calls)
    calls.clear()
    whole = ttb.tune_precision(model, x, metric=score, target=limit)
    assert again == len(calls) - 3 and found == whole
    assert not list(tmp_path.glob(".*"))

    calls.clear()
    known = ttb.tune_precision(model, x, metric=score, target=limit, resume=tmp_path / "search.json")
    assert known == whole and not calls
    with pytest.raises(InvalidFile, match="another search: its inputs is another"):
        ttb.tune_precision(model, x + 1, metric=score, target=limit, resume=tmp_path / "search.json")
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(InvalidFile, match="holds no search to go on with"):
        ttb.tune_precision(model, x, metric=score, target=limit, resume=tmp_path / "search.json")


def test_a_second_judge_that_is_stricter_gets_the_layers_that_it_needs(monkeypatch):
    model, x = made(Between)
    real = ttb.TRTModule.run_flat
    raised = []

    def run_flat(self, tensors):  # as an engine that overflows where PyTorch does not
        outputs = real(self, tensors)
        names = str(self.report.precision)
        raised.append(names)
        return outputs if "2: fp32" in names else [output * float("inf") for output in outputs]

    monkeypatch.setattr(ttb.TRTModule, "run_flat", run_flat)
    found = ttb.tune_precision(model, x, target_error=1e-2)
    assert {"1.up", "1.down", "2"} <= set(found.raised) and "2: fp32" not in raised[0]
    assert [trial.passed for trial in found.trials if trial.how == "compiled"][0] is False


def test_the_search_is_minimal_and_short():
    for seed in range(200):
        chance = random.Random(seed)
        layers = [f"layer{index}" for index in range(chance.randint(1, 40))]
        needed = set(chance.sample(layers, chance.randint(0, min(4, len(layers)))))
        asked = []

        def meets(raised, needed=needed, asked=asked):
            asked.append(raised)
            return needed <= raised

        assert fewest(layers, meets) == needed
        short = max((layers.index(layer) + 1 for layer in needed), default=0)
        assert len(asked) <= 7 + short
        assert needed - set(layers[:3]) <= first_that_meets(frozenset(layers[:3]), layers, meets) - set(layers[:3])
    assert first_that_meets(frozenset(), ["a", "b"], lambda raised: False) is None


def test_layers_that_int8_rounds_too_much_stay_in_16_bits():
    pytest.importorskip("torchao")
    model, x = made(Uneven)
    data = [torch.randn(64, 16)]
    with pytest.raises(InvalidOption, match="needs calibration="):
        ttb.tune_precision(model, x, target_error=3e-2, low="int8")
    found = ttb.tune_precision(model, x, target_error=3e-2, low="int8", calibration=data)
    assert found.high == "fp16" and found.low_score > 3e-2 >= found.score and found.layers == ("0", "2", "4")
    assert 0 < len(found.raised) < 3 and found.precision["default"] == "int8"
    fast = ttb.compile(model, x, found.precision, calibration=data)
    assert (fast(x) - model(x)).norm() <= 3e-2 * model(x).norm()


def test_a_mapping_raises_the_layers_that_it_is_for_and_no_others():
    model, x = made(Between)
    captured = capture(model, x)
    candidates = Candidates(captured, "fp16", "fp32", lambda precision: (captured, precision))
    assert candidates.layers == ("0.up", "0", "0.down", "1.up", "1", "1.down", "2")
    assert candidates.mapping([]) == {"default": "fp16"}
    assert candidates.mapping(["1"]) == {"default": "fp16", "1.up": "fp16", "1": "fp32", "1.down": "fp16"}
    assert candidates.mapping(["1", "1.up"]) == {"default": "fp16", "1": "fp32", "1.down": "fp16"}


def test_a_plans_mapping_names_what_quantization_leaves_alone():
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("torchao")
    model, x = made(Uneven)
    captured, data = capture(model, x), [torch.randn(64, 16)]
    quantizing = Quantizing(captured, "int8", Place(torch.device("cpu"), "portable"), data, None, None)
    candidates = Candidates(captured, "int8", "fp16", quantizing, rest="fp16")
    assert candidates.layers == ("0", "2", "4")
    assert candidates.mapping([]) == {"default": "int8", "6": "fp16"}
    mapping = candidates.mapping(["0", "2"])
    assert mapping == {"default": "int8", "0": "fp16", "2": "fp16", "6": "fp16"}
    built = ttb.build(model, x, mapping, calibration=data, backend="onnx", hybrid=False)
    assert built.report.work["asked"] == {"int8": 1.0, "fp16": 1.0}
    with pytest.raises(PrecisionNotApplied, match="6/linear_3"):
        ttb.build(model, x, {**mapping, "6": "int8"}, calibration=data, backend="onnx", hybrid=False)


def test_the_result_prints_as_text_table_html_and_plot():
    model, x = made(Stream)
    found = ttb.tune_precision(model, x, target_error=1e-2)
    assert repr(found.precision) in repr(found) and "1 of 5 layers to fp32" in repr(found)
    assert "(the model itself)" in repr(found) and "(the model itself)" in found._repr_html_()
    assert [row["layer"] for row in found.table() if row["raised"]] == [""]
    assert json.loads(json.dumps(found.to_dict()))["precision"] == found.precision
    layers, trials = pytest.importorskip("matplotlib") and found.plot().axes
    assert [label.get_text() for label in layers.get_yticklabels()][0] == "(the model itself)"
    assert trials.get_xlabel() == "layers in fp32"


def test_bad_questions_are_refused():
    model, x = nn.Linear(4, 2).eval(), torch.randn(1, 4)
    for wrong in ({}, {"metric": len}, {"target_error": 1.0, "target": 1.0}, {"target_error": 1e-2, "metric": len}):
        with pytest.raises(InvalidOption, match="needs target_error=.*or metric= with target="):
            ttb.tune_precision(model, x, **wrong)
    with pytest.raises(InvalidOption, match="a number above 0"):
        ttb.tune_precision(model, x, target_error=-1.0)
    with pytest.raises(InvalidOption, match="high must be the more precise"):
        ttb.tune_precision(model, x, target_error=1e-2, low="fp16", high="bf16")
    with pytest.raises(TargetUnreachable, match="Not even with all 1 layers in fp16 .* 1e-09 was asked for"):
        ttb.tune_precision(model, x, target_error=1e-9, low="bf16", high="fp16")
