"""Models that no route takes whole: cut, run in parts, saved, reloaded, reported."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import onnx
import pytest
import torch
from comparing import assert_same, nothing_changes
from parts import Alone, Branch, Halves, MixtureOfExperts, Twisted
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.backends import onnx as onnx_route
from torchtrt_bridge.errors import (
    BackendUnavailable,
    ConversionFailed,
    InvalidOption,
    NothingInTensorRT,
    RunsOnCPU,
    VerificationFailed,
)
from torchtrt_bridge.runtime import cpu

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def _on_the_cpu_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunsOnCPU)
        yield


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Twisted().eval()


@pytest.fixture(scope="module")
def fast(model):
    return ttb.compile(model, torch.randn(3, 8), dynamic_batch=(1, 3, 6), device="cpu", backend="onnx")


def test_it_computes_what_the_model_does_at_every_size(fast, model):
    for rows in (1, 2, 6):
        x = torch.randn(rows, 8)
        with torch.no_grad():
            assert_same(fast(x), model(x))


def test_the_report_says_what_is_outside_tensorrt_and_where(fast):
    hybrid = fast.report.hybrid
    assert (hybrid["operations"], hybrid["outside"]) == (7, 1)
    assert [segment["tensorrt"] for segment in hybrid["segments"]] == [True, False, True]
    (layer,) = hybrid["layers"]
    assert layer["operator"] == "bridge_tests.twist" and "no ONNX form" in layer["reason"]
    assert len(hybrid["seconds"]) == 3 and all(seconds > 0 for seconds in hybrid["seconds"])
    text = repr(fast.report)
    assert "2 of 3 segments, 6 of 7 operations (85.7%)" in text and "bridge_tests.twist in the top module" in text
    assert fast.report.runtime == "onnxruntime+torch"
    json.dumps(fast.report.to_dict(), allow_nan=False)


def test_compiling_leaves_everything_as_it_was(model):
    x = torch.randn(3, 8)
    with nothing_changes(model, x):
        ttb.compile(model, x, device="cpu", backend="onnx")


def test_it_reloads_and_copies(fast, model, tmp_path):
    import copy

    fast.save(tmp_path / "saved")
    x = torch.randn(4, 8)
    loaded = ttb.load(tmp_path / "saved")
    assert repr(loaded) == repr(fast) and repr(loaded.report) == repr(fast.report)
    empty = ttb.TRTModule()
    empty.load_state_dict(fast.state_dict())
    for other in (loaded, empty, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert_same(other(x), fast(x), rtol=0, atol=0)


def test_a_fresh_process_names_the_operator_and_what_to_import(fast, model, tmp_path):
    fast.save(tmp_path / "saved")
    x = torch.randn(2, 8)
    torch.save([x, model(x)["logits"].detach()], tmp_path / "case")
    code = f"""
import sys, torch, torchtrt_bridge as ttb
sys.path.insert(0, {str(TESTS)!r})
try:
    ttb.load({str(tmp_path / "saved")!r})
except ttb.errors.BackendUnavailable as error:
    print(error)
assert "parts" not in sys.modules
import parts
x, expected = torch.load({str(tmp_path / "case")!r})
torch.testing.assert_close(ttb.load({str(tmp_path / "saved")!r})(x)["logits"], expected, rtol=1e-4, atol=1e-5)
print("right")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "bridge_tests::twist. First import parts, then load" in done.stdout and done.stdout.endswith("right\n")


def test_hybrid_false_is_an_error_that_names_the_layer(model):
    with pytest.raises(ConversionFailed, match=r"bridge_tests\.twist"):
        ttb.compile(model, torch.randn(3, 8), device="cpu", hybrid=False)


def test_nothing_in_tensorrt_is_an_error_unless_allowed():
    x = torch.randn(3, 8)
    with pytest.raises(NothingInTensorRT, match=r"bridge_tests\.twist.*\n.*hybrid='allow_torch'"):
        ttb.compile(Alone().eval(), x, device="cpu")
    fast = ttb.compile(Alone().eval(), x, device="cpu", hybrid="allow_torch")
    assert_same(fast(x), Alone()(x))
    assert "took no part" not in repr(fast.report)
    assert fast.report.runtime == "torch" and "0 of 1 segments, 0 of 1 operations" in repr(fast.report)


def test_what_comes_out_wrong_is_left_to_pytorch_where_that_is_allowed(monkeypatch):
    real = onnx_route.to_onnx

    def faulty(*args):
        made = real(*args)
        for node in made.graph:
            if node.op_type == "Gelu":
                node.op_type = "Relu"
                node.attributes.clear()
        return made

    monkeypatch.setattr(onnx_route, "to_onnx", faulty)
    model, x = Twisted().head.eval(), torch.randn(3, 16)
    with pytest.raises(VerificationFailed):
        ttb.compile(model, x, device="cpu", backend="onnx")
    fast = ttb.compile(model, x, device="cpu", backend="onnx", hybrid="allow_torch")
    (layer,) = fast.report.hybrid["layers"]
    assert (layer["operator"], layer["place"]) == ("aten.gelu", "1") and "result is wrong" in layer["reason"]
    assert_same(fast(x), model(x).detach())


def test_what_cannot_be_run_is_left_to_pytorch(monkeypatch):
    """As TensorRT, which was seen to build a plan for which it then had no kernels."""
    real = cpu.OnnxExecution.__call__

    def broken(self, tensors):
        if any(node.name.endswith("gelu") for node in self.nodes):
            raise RuntimeError("no valid execution plans")
        return real(self, tensors)

    def remember(self, model, *names):
        make(self, model, *names)
        self.nodes = onnx.load_model_from_string(model.numpy().tobytes()).graph.node

    make = cpu.OnnxExecution.__init__
    monkeypatch.setattr(cpu.OnnxExecution, "__init__", remember)
    monkeypatch.setattr(cpu.OnnxExecution, "__call__", broken)
    model, x = Twisted().head.eval(), torch.randn(3, 16)
    fast = ttb.compile(model, x, device="cpu", backend="onnx")
    (layer,) = fast.report.hybrid["layers"]
    assert layer["operator"] == "aten.gelu" and "no valid execution plans" in layer["reason"]
    assert_same(fast(x), model(x).detach())


def test_other_values_of_hybrid_are_refused(model):
    with pytest.raises(InvalidOption, match="hybrid='maybe': give 'auto', 'allow_torch', True or False"):
        ttb.compile(model, torch.randn(3, 8), hybrid="maybe")


def test_in_a_lower_precision(model):
    half = ttb.compile(model, torch.randn(3, 8), "fp16", device="cpu", backend="onnx")
    x = torch.randn(3, 8)
    error = (half(x)["logits"] - model(x)["logits"]).abs().max()
    assert 1e-5 < error < 1e-2
    assert "aten.layer_norm" in half.report.kept_fp32


def test_dynamic_sizes_cross_the_cuts():
    model = Halves().eval()
    fast = ttb.compile(model, torch.randn(3, 8), dynamic_batch=(1, 3, 7), device="cpu", backend="onnx")
    assert len(fast.report.hybrid["segments"]) == 3
    for rows in (1, 4, 7):
        x = torch.randn(rows, 8)
        with torch.no_grad():
            assert_same(fast(x), model(x))


def test_control_flow_goes_to_pytorch(tmp_path):
    model = Branch().eval()
    fast = ttb.compile(model, torch.randn(3, 8), device="cpu", hybrid=True, backend="onnx")
    assert any("cond" in layer["operator"] for layer in fast.report.hybrid["layers"])
    fast.save(tmp_path / "saved")
    loaded = ttb.load(tmp_path / "saved")
    for x in (torch.ones(3, 8), -torch.ones(3, 8)):
        with torch.no_grad():
            assert_same(loaded(x), model(x))


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)

    def forward(self, x, memory):
        h = torch.ops.bridge_tests.twist(torch.relu(self.body(x)) + memory)
        memory.mul_(0.5).add_(h)
        return self.body(h)


def test_inputs_that_the_model_writes_to_are_written_to():
    model, x = Writing().eval(), torch.randn(3, 8)
    fast = ttb.compile(model, (x, torch.zeros(3, 8)), device="cpu", backend="onnx")
    mine, expected = torch.ones(3, 8), torch.ones(3, 8)
    for _ in range(3):
        x = torch.randn(3, 8)
        with torch.no_grad():
            assert_same(fast(x, mine), model(x, expected))
        assert_same(mine, expected)
    assert len(fast.report.hybrid["segments"]) == 3


# -- sizes that depend on the data -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts():
    torch.manual_seed(0)
    return MixtureOfExperts().eval()


def test_a_mixture_of_experts(experts, tmp_path):
    fast = ttb.compile(experts, torch.randn(2, 6, 16), hybrid=True, device="cpu", backend="onnx")
    hybrid = fast.report.hybrid
    assert hybrid["outside"] / hybrid["operations"] < 0.2
    assert {layer["operator"] for layer in hybrid["layers"]} >= {"aten.where", "aten.index_add"}
    fast.save(tmp_path / "saved")
    loaded = ttb.load(tmp_path / "saved")
    one = torch.randn(1, 1, 16)
    for x in (*torch.randn(5, 2, 6, 16), one.expand(2, 6, 16)):  # the last leaves two of the experts without a token
        with torch.no_grad():
            assert_same(loaded(x), experts(x))


def test_a_mixture_of_experts_with_a_dynamic_batch(experts):
    x = torch.randn(2, 6, 16)
    fast = ttb.compile(experts, x, dynamic_batch=(1, 2, 4), hybrid=True, device="cpu", backend="onnx")
    for rows in (1, 4):
        x = torch.randn(rows, 6, 16)
        with torch.no_grad():
            assert_same(fast(x), experts(x))


# -- plans -------------------------------------------------------------------------------------------------------------


def test_plans_are_built_for_a_gpu_elsewhere(model, experts, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX builds without a GPU")
    for module, x, plans in ((model, torch.randn(3, 8), 2), (experts, torch.randn(2, 6, 16), 5)):
        built = ttb.build(module, x, "fp16", target="sm89", hybrid=True, backend="onnx")
        assert sum(name.startswith("engine.") for name in built.state_dict()) == plans
        assert built.provenance["target"] == "sm89" and built.report.verification == ()
        built.save(tmp_path / "saved")
        assert repr(ttb.load(tmp_path / "saved")) == repr(built)


def test_a_module_of_several_segments_has_no_one_plan(fast, tmp_path):
    assert "segments: 2 by onnxruntime, 1 by torch" in repr(fast)
    with pytest.raises(ttb.errors.EngineMismatch, match="3 segments.*no ONNX model"):
        fast.save_onnx(tmp_path / "model.onnx")
    with pytest.raises(ttb.errors.EngineMismatch, match="3 segments"):
        fast.save_plan(tmp_path / "plan")


def test_a_missing_operator_is_named_at_loading(fast, monkeypatch):
    names = [n for n in torch._C._dispatch_get_all_op_names() if "bridge_tests" not in n]
    monkeypatch.setattr(torch._C, "_dispatch_get_all_op_names", lambda: names)
    with pytest.raises(BackendUnavailable, match=r"bridge_tests::twist\. First import parts"):
        ttb.TRTModule().load_state_dict(fast.state_dict())
