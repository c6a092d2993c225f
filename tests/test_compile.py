"""compile() and build(): on a machine without a GPU too, with everything that was done or left undone said."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from comparing import EXACT, assert_same, nothing_changes
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import EngineMismatch, InvalidOption, RunsOnCPU
from torchtrt_bridge.precision import Precision

LIMITS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return {"logits": self.head(self.body(x)), "rows": x.shape[0]}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module", params=["fp32", "fp16", "bf16"])
def fast(request, model):
    return ttb.compile(model, torch.randn(3, 8), request.param, dynamic_batch=(1, 3, 6))


def test_it_computes_what_the_model_does(fast, model):
    limit = LIMITS[fast.precision]
    for rows in (1, 2, 6):
        x = torch.randn(rows, 8)
        with torch.no_grad():
            assert_same(fast(x), model(x), rtol=limit, atol=limit)


def test_a_low_precision_really_is_low(fast, model):
    x = torch.randn(6, 8)
    error = (fast(x)["logits"] - model(x)["logits"]).abs().max()
    assert (error > 1e-5) == (fast.precision != "fp32")


def test_on_the_cpu_the_runtime_is_one_that_computes_in_that_precision(fast):
    assert fast.report.runtime == ("onnxruntime" if fast.precision == "fp32" else "torch")
    assert fast.device == torch.device("cpu")


def test_running_on_the_cpu_is_said_everywhere(model):
    with pytest.warns(RunsOnCPU, match="without TensorRT") as caught:
        fast = ttb.compile(model, torch.randn(3, 8))
    assert caught[0].filename == __file__
    assert "runs on: the CPU, by ONNX Runtime, without TensorRT" in repr(fast)
    assert "runs on      cpu (onnxruntime)" in repr(fast.report)
    assert "without TensorRT" in fast._repr_html_()


def test_the_report_says_what_was_done(fast):
    report = fast.report
    assert (report.backend, report.precision, report.where) == ("onnx", fast.precision, "cpu")
    assert {"capturing", "converting", "loading", "verifying"} <= set(report.seconds)
    assert all(seconds >= 0 for seconds in report.seconds.values())
    assert [row["at"] for row in report.verification] == ["the example", "batch=1", "batch=6"]
    assert all(row["passed"] for row in report.verification)
    if fast.precision != "fp32":
        assert "aten.layer_norm" in report.kept_fp32
        assert "kept in fp32 aten.layer_norm (1 place)" in repr(report)
        assert f"do not compute in {Precision.parse(fast.precision).dtype}".replace("torch.", "") in repr(report)


def test_the_report_goes_with_the_file(fast, tmp_path):
    fast.save(tmp_path / "saved")
    loaded = ttb.load(tmp_path / "saved")
    assert repr(loaded.report) == repr(fast.report)
    assert repr(loaded) == repr(fast)
    assert loaded.report.to_dict() == fast.report.to_dict()
    json.dumps([fast.provenance, fast.report.to_dict()], allow_nan=False)


def test_the_repr_says_route_precision_shapes_and_sizes(fast):
    text = repr(fast)
    for part in ("route: onnx", f"precision: {fast.precision}", "input: x: float32[batch, 8]", "1 to 6, tuned for 3"):
        assert part in text
    assert "result: logits: float32[batch, 3]" in text and "MiB" in text


def test_html_shows_the_same_and_escapes_it(tmp_path):
    class Tagged(nn.Module):
        def forward(self, x):
            return {"<b>&": x * 2}

    fast = ttb.compile(Tagged().eval(), torch.randn(2, 3))
    for page in (fast._repr_html_(), fast.report._repr_html_()):
        assert "&lt;b&gt;&amp;" in page and "<b>&" not in page
        assert "onnx" in page and page.count("<tr>") == page.count("</tr>") > 3
    assert "load_state_dict() fills it" in ttb.TRTModule()._repr_html_()


def test_verify_false_is_said(model):
    fast = ttb.compile(model, torch.randn(3, 8), verify=False)
    assert fast.report.verification == ()
    assert "verify=False" in repr(fast.report) and "verified     no" in repr(fast.report)


def test_settings_of_a_build_that_does_not_take_place_are_said(model):
    fast = ttb.compile(model, torch.randn(3, 8), build=ttb.BuildOptions(optimization_level=1))
    assert "optimization_level=1" in repr(fast.report) and "no effect" in repr(fast.report)


def test_the_users_model_may_be_trained_on(model):
    trained = Net().eval()
    x = torch.randn(3, 8)
    modules = [ttb.compile(trained, x, precision, source=True) for precision in LIMITS]
    before = [module(x)["logits"].clone() for module in modules]
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    for module, expected in zip(modules, before):
        assert_same(module(x)["logits"], expected, **EXACT)


def test_device_cpu_is_the_same_as_none(model):
    x = torch.randn(3, 8)
    assert_same(ttb.compile(model, x, device="cpu")(x), ttb.compile(model, x)(x), **EXACT)


def test_a_route_by_name(model):
    assert ttb.compile(model, torch.randn(3, 8), backend="onnx").backend == "onnx"


def test_no_line_is_printed(model, capfd):
    ttb.compile(model, torch.randn(3, 8), "fp16")
    ttb.compile(model, torch.randn(3, 8))
    assert capfd.readouterr() == ("", "")


def test_where_a_person_watches_the_stages_are_shown(model, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", shown)
    ttb.build(model, torch.randn(3, 8))
    assert "capturing" in shown.getvalue() and "converting: " in shown.getvalue()


# -- build() -----------------------------------------------------------------------------------------------------------

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX builds without a GPU")


@pytest.fixture(scope="module", params=[None, "sm89"], ids=["portable", "sm89"])
def plan(request, model):
    return ttb.build(model, torch.randn(3, 8), "fp16", dynamic_batch=(1, 3, 6), target=request.param)


@pytest.fixture
def target(plan):
    return plan.provenance["target"]


def test_a_plan_is_built_without_a_gpu(plan, target):
    made = plan.provenance
    assert target in ("portable", "sm89") and made["flavour"] == "tensorrt_rtx"
    assert made["tensorrt"] == rtx.__version__ and made["layers"] > 0
    assert plan.state_dict()["engine"].numel() > 10_000


def test_the_report_says_that_it_was_not_run(plan, target):
    assert plan.report.verification == () and plan.report.where == f"a GPU elsewhere, {target}"
    assert "was built for a GPU elsewhere and has not been run" in repr(plan.report)
    assert f"built for: {target}" in repr(plan) and "tensorrt_rtx" in repr(plan)


def test_building_warns_of_nothing(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RunsOnCPU)
        ttb.build(model, torch.randn(3, 8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_plan_where_no_gpu_is_can_be_shown_and_saved_but_not_run(plan, target, tmp_path):
    plan.save(tmp_path / "plan")
    loaded = ttb.load(tmp_path / "plan")
    assert repr(loaded) == repr(plan)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "plan").read_bytes()
    with pytest.raises(EngineMismatch, match=f"built for {target}; it needs an NVIDIA GPU.*Load the file on that GPU"):
        loaded(torch.randn(3, 8))
    with pytest.raises(EngineMismatch, match="no CUDA device"):
        ttb.load(tmp_path / "plan", device="cuda")


def test_the_bare_plan_can_be_written(plan, tmp_path):
    plan.save_plan(tmp_path / "model.plan")
    assert (tmp_path / "model.plan").read_bytes() == plan.state_dict()["engine"].numpy().tobytes()


def test_a_module_without_a_plan_says_how_to_get_one(model, tmp_path):
    with pytest.raises(EngineMismatch, match=r"runs on onnxruntime.*torchtrt_bridge\.build"):
        ttb.compile(model, torch.randn(3, 8)).save_plan(tmp_path / "model.plan")


def test_a_plan_keeps_no_onnx_model_unless_asked(plan, tmp_path):
    with pytest.raises(EngineMismatch, match="source=True"):
        plan.save_onnx(tmp_path / "model.onnx")


def test_targets_are_the_flavours_own():
    assert {"sm80", "sm89", "sm120"} <= set(ttb.targets())


def test_an_unknown_target_names_the_known_ones(model):
    x = torch.randn(3, 8)
    with nothing_changes(model, x), pytest.raises(InvalidOption, match="target='sm98'.*sm89"):
        ttb.build(model, x, target="sm98")


def test_a_setting_that_the_flavour_lacks_is_an_error_that_says_so(model):
    with pytest.raises(InvalidOption, match="timing_cache.*tensorrt_rtx"):
        ttb.build(model, torch.randn(3, 8), build=ttb.BuildOptions(timing_cache="here"))


def test_tensorrts_messages_go_to_the_logger(model, caplog, capfd):
    with caplog.at_level(logging.DEBUG, "torchtrt_bridge"):
        ttb.build(model, torch.randn(3, 8))
    assert any(record.name == "torchtrt_bridge" for record in caplog.records)
    assert capfd.readouterr().out == ""


_INTERRUPTED = """
import os, sys, threading, time, warnings
import torch, torchtrt_bridge as ttb
from torch import nn
from torchtrt_bridge.trt import isolation
torch.manual_seed(0)
layers = [layer for n in range(60) for layer in (nn.Linear(512 + n, 513 + n), (nn.ReLU, nn.Tanh, nn.GELU)[n % 3]())]
model = nn.Sequential(*layers).eval()
running = isolation._running
def announced(*args):
    context = running(*args)
    class Announced:
        def __enter__(self):
            process = context.__enter__()
            print(process.pid, flush=True)
            return process
        def __exit__(self, *error):
            return context.__exit__(*error)
    return Announced()
isolation._running = announced
try:
    ttb.build(model, torch.randn(4, 512), dynamic_batch=(1, 4, 64))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(3)
print("finished", flush=True)
"""


@pytest.mark.skipif(torch.cuda.is_available() or os.name == "nt", reason="the build runs in a child without a GPU only")
def test_an_interrupt_ends_a_build_within_two_seconds_and_leaves_no_child():
    process = subprocess.Popen([sys.executable, "-c", _INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    os.kill(child, signal.SIGSTOP)  # a build that would never end
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    line = process.stdout.readline()
    seconds = time.monotonic() - began  # the rest is Python's own way out
    process.communicate(timeout=60)
    assert (line.strip(), process.returncode) == ("interrupted", 3)
    assert seconds < 2
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_provenance_and_report_are_plain_data(plan):
    json.dumps([plan.provenance, plan.report.to_dict()], allow_nan=False)
