"""ttb.compare() on engines: the same faults in the same five models, found by a debug build of the plan's program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from faulty import CASES, Case, made, overflowing, perturbed
from torch import nn
from torch.utils._pytree import tree_map

import torchtrt_bridge as ttb

pytestmark = pytest.mark.gpu


def on_gpu(case: Case) -> tuple[nn.Module, Any]:
    model, inputs = made(case)
    return model.cuda(), tree_map(lambda t: t.cuda(), inputs)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_with_other_weights_is_found(name):
    model, inputs = on_gpu(CASES[name])
    compiled = ttb.compile(perturbed(model, CASES[name].layer), inputs, "fp16", backend="onnx", source=True)
    found = ttb.compare(model, compiled, inputs)
    print(found)
    assert found.runtime == "tensorrt" and found.first.place == found.worst.place == CASES[name].layer
    assert sum(layer.departs for layer in found.layers) == 1


@pytest.mark.parametrize("name", CASES)
def test_a_layer_that_overflows_is_found(name):
    model, inputs = on_gpu(CASES[name])
    model = overflowing(model, CASES[name].layer, inputs)
    compiled = ttb.compile(model, inputs, "fp16", backend="onnx", verify=False)
    found = ttb.compare(model, compiled, inputs)
    print(found)
    assert found.first.place == CASES[name].layer and found.first.nonfinite > 0
    assert found.first in found.overflows


def test_a_sound_engine_has_no_layer_out_of_line():
    model, inputs = on_gpu(CASES["residual CNN"])
    for precision in ("fp32", "fp16", "bf16"):
        try:
            compiled = ttb.compile(model, inputs, precision, backend="onnx")
        except ttb.errors.VerificationFailed as error:  # TensorRT for RTX 1.4 computes fp32 in TF32, and says so
            assert "TF32" in str(error) and precision == "fp32"
            continue
        found = ttb.compare(model, compiled, inputs, level="operator")
        print(found)
        assert found.first is None and all(row.passed for row in found.results)


def test_a_plan_alone_says_that_its_weights_are_others():
    model, inputs = on_gpu(CASES["MLP mixer"])
    compiled = ttb.compile(perturbed(model, CASES["MLP mixer"].layer), inputs, "fp16", backend="onnx")
    found = ttb.compare(model, compiled, inputs)
    assert found.first is None and not found.results[0].passed
    assert any("source=True" in note for note in found.notes)
    assert any("the debug build's own results are not the module's" in note for note in found.notes)


def test_many_layers_take_several_builds(monkeypatch):
    monkeypatch.setattr("torchtrt_bridge.tools.debug_build._MOST_RESULTS", 8)
    model, inputs = on_gpu(CASES["MLP mixer"])
    compiled = ttb.compile(perturbed(model, CASES["MLP mixer"].layer), inputs, "fp16", backend="onnx", source=True)
    found = ttb.compare(model, compiled, inputs)
    assert "3 debug builds" in found.notes[0] and found.first.place == CASES["MLP mixer"].layer


def test_a_quantized_plan_is_built_again_from_the_program_that_it_keeps():
    pytest.importorskip("torchao")
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 16)), torch.randn(64, 64)
    model, x = model.eval().cuda(), x.cuda()
    unquantized_last = ttb.BuildOptions(minimum_share=0.8)
    options = {"calibration": [x], "backend": "onnx", "verify": False, "build": unquantized_last}
    found = ttb.compare(model, ttb.compile(perturbed(model, "2"), x, "int8", source=True, **options), x)
    print(found)
    assert found.precision == "int8" and found.worst.place == "2"
    with pytest.raises(ttb.errors.EngineMismatch, match="whose scales cannot be had"):
        ttb.compare(model, ttb.compile(model, x, "int8", **options), x)
