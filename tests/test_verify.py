"""A wrong result never gets through: not a wrong number, a NaN, a shape, nor one at the end of a range only."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from comparing import nothing_changes
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge import runtime, selection
from torchtrt_bridge.backends.onnx import OnnxBackend
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import VerificationFailed
from torchtrt_bridge.precision import Precision
from torchtrt_bridge.verify import DEFAULTS, Tolerance, cases, compare, verify

LIMIT = Tolerance(1e-4, 1e-3, 0.01)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture(scope="module")
def captured(model):
    return capture(model, torch.randn(3, 8), dynamic_batch=(1, 3, 6))


class Spoiled(OnnxBackend):
    """A route that builds a slightly different model."""

    def __init__(self, factor: float):
        self.factor = factor

    def convert(self, captured, *rest):
        program = captured.program
        state = {name: tensor * self.factor for name, tensor in program.state_dict.items()}
        spoiled = program.run_decompositions({})
        spoiled._state_dict = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in state.items()}
        return super().convert(dataclasses.replace(captured, program=spoiled), *rest)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_slightly_wrong_weights_are_caught(model, monkeypatch, precision):
    monkeypatch.setattr(selection, "BACKENDS", (Spoiled(1.0),))
    ttb.compile(model, torch.randn(3, 8), precision)
    monkeypatch.setattr(selection, "BACKENDS", (Spoiled(1 + 5 * DEFAULTS[precision].relative_l2),))
    x = torch.randn(3, 8)
    with nothing_changes(model, x), pytest.raises(VerificationFailed) as error:
        ttb.compile(model, x, precision, dynamic_batch=(1, 3, 6))
    message = str(error.value)
    assert f"differ from the eager model's in {precision}" in message
    for at in ("the example", "batch=1", "batch=6"):
        assert f"MISS output at {at}: relative L2" in message
    assert "Tolerance(...)" in message


def test_the_user_can_allow_it(model, monkeypatch):
    monkeypatch.setattr(selection, "BACKENDS", (Spoiled(1.01),))
    fast = ttb.compile(model, torch.randn(3, 8), verify=Tolerance(0.1, 0.1, 0.1))
    (row,) = fast.report.verification
    assert row["passed"] and 1e-3 < row["relative_l2"] < 0.1
    assert "relative L2" in repr(fast.report)


def test_the_user_can_allow_less(model):
    with pytest.raises(VerificationFailed, match="allowed: relative L2 1e-12"):
        ttb.compile(model, torch.randn(3, 8), "bf16", verify=Tolerance(1e-12, 1e-12, 0.0))


def test_unverified_is_unverified(model, monkeypatch):
    monkeypatch.setattr(selection, "BACKENDS", (Spoiled(3.0),))
    fast = ttb.compile(model, torch.randn(3, 8), verify=False)
    assert fast.report.verification == ()


def changed(at, how):
    """A runner that is right but for one element, in the case with ``at`` rows."""

    def make(eager):
        def run(tensors):
            results = [result.clone() for result in eager(tensors)]
            return how(results) if len(tensors[0]) == at else results

        return run

    return make


def poke(value):
    def how(results):
        results[0].view(-1)[-1] = value
        return results

    return how


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (poke(math.nan), "1 NaN or Inf where eager is finite"),
        (poke(-math.inf), "1 NaN or Inf where eager is finite"),
        (poke(9.0), "max error"),
        (lambda results: [results[0][:-1]], r"\(torch.float32\[\d, 4\] instead of torch.float32\[\d, 4\]\)"),
        (lambda results: [results[0].double()], "torch.float64.* instead of torch.float32"),
    ],
    ids=["NaN", "Inf", "one element", "shape", "dtype"],
)
@pytest.mark.parametrize("rows", [3, 1, 6], ids=["example", "min", "max"])
def test_one_wrong_element_at_any_size_is_caught(captured, how, message, rows):
    fp32 = Precision("fp32")
    assert all(row.passed for row in verify(captured, captured.eager, fp32))
    with pytest.raises(VerificationFailed, match=message) as error:
        verify(captured, changed(rows, how)(captured.eager), fp32)
    assert str(error.value).count("MISS") == 1 and str(error.value).count("ok  ") == 2


def test_a_missing_result_is_never_taken_for_a_right_one(captured):
    with pytest.raises(ValueError):
        verify(captured, lambda tensors: [], Precision("fp32"))


def row(expected, actual, limit=LIMIT):
    return compare("the example", "y", torch.as_tensor(expected), torch.as_tensor(actual), limit)


def test_errors_are_relative_to_the_eager_result():
    found = row([3.0, 4.0], [3.0, 4.05], Tolerance(0.02, 0.02, 0))
    assert found.relative_l2 == pytest.approx(0.01, rel=1e-4)
    assert found.max_error == pytest.approx(0.0125, rel=1e-4)
    assert found.passed and math.isnan(found.unequal)
    assert not row([3.0, 4.0], [3.0, 4.05], Tolerance(0.005, 0.02, 0)).passed
    assert not row([3.0, 4.0], [3.0, 4.05], Tolerance(0.02, 0.005, 0)).passed


def test_zeros_are_compared_absolutely():
    assert row([0.0, 0.0], [0.0, 1e-6]).passed
    assert not row([0.0, 0.0], [0.0, 1e-2]).passed


def test_nan_and_inf_must_be_where_eager_has_them():
    inf, nan = math.inf, math.nan
    assert row([1.0, nan, inf, -inf], [1.0, nan, inf, -inf]).passed
    assert row([nan, inf], [nan, inf]).passed
    assert not row([1.0, nan], [1.0, 2.0]).passed
    assert not row([1.0, inf], [1.0, -inf]).passed
    assert not row([1.0, 2.0], [1.0, nan]).passed
    assert row([nan, inf], [inf, inf]).new_nonfinite == 1


def test_integers_and_bools_count_the_unequal():
    found = row([1, 2, 3, 4], [1, 2, 3, 5], Tolerance(0, 0, 0.3))
    assert found.unequal == 0.25 and found.passed and "25.00% of elements differ" in str(found)
    assert not row([1, 2, 3, 4], [1, 2, 3, 5], Tolerance(1, 1, 0.2)).passed
    assert not row([True, False], [True, True]).passed


def test_empty_results_need_the_right_shape():
    assert row(torch.empty(0, 3), torch.empty(0, 3)).passed
    assert not row(torch.empty(0, 3), torch.empty(3, 0)).passed


def test_complex_results_are_compared_in_both_parts():
    assert row([1 + 1j, 2.0], [1 + 1j, 2.0]).passed
    assert not row([1 + 1j, 2.0], [1 + 1.1j, 2.0]).passed


def test_large_fp16_results_do_not_overflow_the_comparison():
    big = torch.full((1000,), 60000.0, dtype=torch.float16)
    found = row(big, big)
    assert found.passed and found.relative_l2 == 0


def test_every_end_of_every_range_is_a_case():
    class Two(nn.Module):
        def forward(self, ids, mask):
            return (ids * mask).sum(1), ids.float()

    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    said = {"ids": {0: ttb.Dim(1, 2, 4, "b"), 1: ttb.Dim(2, 3, 6, "l")}}
    said["mask"] = said["ids"]
    found = dict(cases(capture(Two().eval(), (ids, mask), dynamic_shapes=said)))
    assert list(found) == ["the example", "b=1, l=2", "b=4, l=6"]
    small, large = found["b=1, l=2"], found["b=4, l=6"]
    assert [t.tolist() for t in small] == [[[5, 6]], [[1, 1]]]
    assert [tuple(t.shape) for t in large] == [(4, 6), (4, 6)]
    assert set(large[0].flatten().tolist()) == set(range(5, 11)) and set(large[1].flatten().tolist()) == {0, 1}


def test_verifying_runs_the_module_and_not_a_copy_of_the_model(model, monkeypatch):
    calls = []
    real = runtime.module.TRTModule.run_flat

    def watched(self, tensors):
        calls.append([tuple(t.shape) for t in tensors])
        return real(self, tensors)

    monkeypatch.setattr(runtime.module.TRTModule, "run_flat", watched)
    ttb.compile(model, torch.randn(3, 8), dynamic_batch=(1, 3, 6))
    assert calls == [[(3, 8)], [(1, 8)], [(6, 8)]]


def test_a_model_in_16_bits_is_compared_by_what_they_hold():
    captured = capture(nn.Linear(8, 4).half().eval(), torch.randn(3, 8).half())

    def spoiled(factor):
        return verify(captured, lambda tensors: [t * factor for t in captured.eager(tensors)], Precision("fp32"))

    (row,) = spoiled(1.003)
    assert row.passed and row.relative_l2 > 1e-3
    with pytest.raises(VerificationFailed, match="allowed: relative L2 1e-02"):
        spoiled(1.1)
