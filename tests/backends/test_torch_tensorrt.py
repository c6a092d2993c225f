"""The Torch-TensorRT route without a GPU: real plans, refusals by layer, and a caller whose process stays as it was."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from comparing import assert_same, nothing_changes
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.backends import torch_tensorrt as route
from torchtrt_bridge.backends import torch_tensorrt_worker as worker
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import (
    BuildCrashed,
    ConversionFailed,
    InvalidOption,
    UnsupportedLayer,
)
from torchtrt_bridge.precision import Precision, cast_program

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_tensorrt") is None, reason="torch_tensorrt is not installed"
)
ELSEWHERE = Place(torch.device("cpu"), "portable")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        tokens = torch.relu(self.norm(self.stem(x))).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens.mean(1))


class Kinds(nn.Module):
    """Results of every kind that Torch-TensorRT's own entry point loses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x, index):
        scores = x * 2
        return {
            "input": x,
            "constant": self.table,
            "none": None,
            "number": x.shape[0],
            "scores": scores,
            "again": scores,
            "view": x.view_as(x),
            "largest": scores.argmax(),
            "total": scores.sum(),
            "int32": index.to(torch.int32) + 1,
            "positive": x > 0,
        }


class Wrapped(nn.Module):
    """One operator, deep inside."""

    def __init__(self, function):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.decoder = nn.Sequential(nn.ReLU(), Function(function))

    def forward(self, x):
        return self.decoder(self.stem(x))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def plan_of(model, inputs, precision="fp32", dynamic_shapes=None, place=ELSEWHERE, **options):
    captured = capture(model.eval(), inputs, dynamic_shapes=dynamic_shapes)
    program = cast_program(captured.program, Precision.parse(precision)).program
    said = options.pop("progress", lambda phase, fraction: None)
    return route.build_plan(program, captured.signature, ttb.BuildOptions(**options), place, said)


# -- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision, word", [("fp32", "FLOAT"), ("fp16", "HALF"), ("bf16", "BF16")])
def test_a_plan_has_the_layers_the_dtypes_and_the_range_of_the_model(precision, word):
    model = Attention()
    said = {"x": {0: ttb.Dim(1, 2, 4)}}
    built = plan_of(model, torch.randn(2, 3, 6, 6), precision, said)
    assert built.layers["convolution"] == 1 and built.layers["attention_input"] == 1
    floats = {name: count for name, count in built.types.items() if name in ("FLOAT", "HALF", "BF16")}
    assert max(floats, key=floats.get) == word and (precision != "fp32" or set(floats) == {"FLOAT"})
    assert built.results == {"output": "FLOAT"}  # the model's own dtype
    assert built.flavor == "tensorrt_rtx" and built.target is None and built.engine.numel() > 1000


def test_names_and_provenance_are_those_of_the_onnx_route():
    model, x = Attention().eval(), torch.randn(2, 3, 6, 6)
    ours, onnx = (ttb.build(model, x, "fp16", backend=name, target="sm89") for name in ("torch_tensorrt", "onnx"))
    assert ours.backend == "torch_tensorrt" and ours.report.runtime == "tensorrt"
    assert ours.signature == onnx.signature
    assert [(s.inputs, s.outputs) for s in ours._artifact.segments] == [
        (s.inputs, s.outputs) for s in onnx._artifact.segments
    ]
    own = {"layers", "opset", "torch_tensorrt"}
    same = {key: value for key, value in onnx.provenance.items() if key not in own}
    assert {key: value for key, value in ours.provenance.items() if key not in own} == same
    assert ours.provenance["target"] == "sm89" and ours.provenance["torch_tensorrt"][:2] == "2."


def test_results_keep_their_dtypes_and_every_kind_of_result_comes_back():
    model, inputs = Kinds().eval(), (torch.randn(2, 3), torch.tensor([3, 4]))
    built = plan_of(model, inputs, dynamic_shapes={"x": {0: ttb.Dim(1, 2, 4)}})
    names = {"scores": "FLOAT", "view": "FLOAT", "largest": "INT64", "total": "FLOAT", "int32": "INT32"}
    assert built.results == {**names, "positive": "BOOL"}
    with nothing_changes(model, *inputs):
        fast = ttb.compile(model, inputs, backend="torch_tensorrt", dynamic_shapes={"x": {0: ttb.Dim(1, 2, 4)}})
    for rows in (1, 2, 4):
        other = torch.randn(rows, 3), torch.tensor([7, -8])
        assert_same(fast(*other), model(*other))
    assert fast.backend == "torch_tensorrt" and fast.report.runtime == "torch"


@pytest.mark.parametrize("dim", [ttb.Dim(0, 2, 4), ttb.Dim(1, 1, 3), ttb.Dim(2, 3, 5)])
def test_a_range_that_begins_at_nothing_or_one_is_dynamic_all_the_same(dim):
    built = plan_of(nn.Linear(3, 2), torch.randn(3, 3), dynamic_shapes={"input": {0: dim}})
    fixed = plan_of(nn.Linear(3, 2), torch.randn(3, 3))
    assert built.engine.numel() != fixed.engine.numel() or not torch.equal(built.engine, fixed.engine)


def test_inputs_of_every_dtype_go_in_as_they_are():
    class Sum(nn.Module):
        def forward(self, a, b, c, d, e, f):
            return a + b.float() + c.float() + d.float() + e.float() + f.float()

    dtypes = (torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
    built = plan_of(Sum(), tuple(torch.ones(2).to(dtype) for dtype in dtypes))
    assert built.results == {"output": "FLOAT"} and built.layers["elementwise"] == 5


def test_progress_reaches_the_end_of_the_build():
    phases = []
    plan_of(nn.Linear(3, 2), torch.randn(3, 3), progress=lambda phase, fraction: phases.append((phase, fraction)))
    names = [name for name, _ in phases]
    assert names.index("lowering the graph") < names.index("converting the graph") < len(names) - 1
    assert phases[-1][1] == 1.0


class Forms(nn.Module):
    """Operators that Torch-TensorRT alone does not take, or that TensorRT refuses from it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 24)), nn.Parameter(torch.randn(24))

    def forward(self, x, scale, index):
        q, k, v = torch.addmm(self.bias, x.flatten(0, 1), self.weight).unflatten(0, x.shape[:2]).chunk(3, -1)
        heads = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (q, k, v)]
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        largest, where = mixed.max(-1)
        pooled = nn.functional.adaptive_avg_pool2d(mixed.permute(0, 3, 1, 2), 1)
        row = x[0, 0].softmax(0) + x[0, 0].log_softmax(-1)
        picked = x[..., 0].gather(1, index)
        return mixed, largest, where, pooled, row, scale.sum() * scale.mean(), picked, x.exp().log1p()


@pytest.mark.parametrize("dynamic", [False, True])
def test_forms_of_operators_that_it_lacks(dynamic):
    inputs = torch.randn(2, 5, 8), torch.tensor(2.0), torch.randint(0, 5, (2, 3))
    batch = ttb.Dim(1, 2, 4, name="batch")
    built = plan_of(Forms(), inputs, dynamic_shapes={"x": {0: batch}, "index": {0: batch}} if dynamic else None)
    assert list(built.results.values()) == ["FLOAT", "FLOAT", "INT64", "FLOAT", "FLOAT", "FLOAT", "FLOAT", "FLOAT"]
    assert built.layers["attention_input"] == 1 and built.layers["gather"] >= 1


# -- options -----------------------------------------------------------------------------------------------------------


def test_a_setting_of_torch_tensorrt_is_honoured():
    class Plain(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    x = torch.randn(1, 2, 5, 4)
    kept = plan_of(Plain(), x)
    split = plan_of(Plain(), x, torch_tensorrt={"decompose_attention": True})
    assert kept.layers["attention_input"] == 1 and "attention_input" not in split.layers
    assert split.layers["matrix_multiply"] == 2 and "matrix_multiply" not in kept.layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_tensorrt": {"decompose_atention": True}}, "no such setting. Did you mean 'decompose_attention'?"),
        ({"torch_tensorrt": {"workspace_size": 1}}, r"give BuildOptions\(workspace=...\)"),
        ({"torch_tensorrt": {"enabled_precisions": ["half"]}}, r"give compile\(precision=...\)"),
        ({"torch_tensorrt": {"autocast_max_output_threshold": 3}}, r"give compile\(precision=...\)"),
        ({"torch_tensorrt": {"attn_bias_is_causal": True}}, "the results would be wrong"),
        ({"torch_tensorrt": {"min_block_size": 2}}, "how a graph is cut"),
        ({"torch_tensorrt": {"num_avg_timing_iters": 2}}, "measures no kernels"),
        ({"torch_tensorrt": {"max_aux_streams": torch.ones(1)}}, "a value may be a number"),
        ({"timing_cache": "cache"}, "measures no kernels"),
        ({"version_compatible": True}, "has no version compatible plans"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, message):
    with pytest.raises(InvalidOption, match=message):
        ttb.build(
            nn.Linear(3, 2).eval(), torch.randn(1, 3), backend="torch_tensorrt", build=ttb.BuildOptions(**options)
        )


def test_another_route_refuses_its_settings_and_they_must_have_names():
    settings = ttb.BuildOptions(torch_tensorrt={"decompose_attention": True})
    assert hash(settings) == hash(ttb.BuildOptions())
    with pytest.raises(InvalidOption, match="settings of the route 'torch_tensorrt'"):
        ttb.compile(nn.Linear(3, 2).eval(), torch.randn(1, 3), backend="onnx", build=settings)
    with pytest.raises(InvalidOption, match="by name"):
        ttb.BuildOptions(torch_tensorrt=["decompose_attention"])


def test_an_unknown_target_is_refused():
    with pytest.raises(InvalidOption, match="'sm98'.*Did you mean 'sm89'"):
        ttb.build(nn.Linear(3, 2).eval(), torch.randn(1, 3), backend="torch_tensorrt", target="sm98")


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["a GPU elsewhere", "the CPU"])
@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch.linalg.det, "aten._linalg_det.default"),
        (torch.lgamma, "aten.lgamma.default"),
        (lambda x: x.nonzero().sum(0), "aten.nonzero.default"),
    ],
    ids=["no converter", "none for what it is made of", "none for this flavour"],
)
def test_an_operator_without_a_converter_is_named_with_the_users_module(function, operator, where):
    model, x = Wrapped(function).eval(), torch.randn(4, 4)
    make = ttb.build if where == "a GPU elsewhere" else ttb.compile
    with nothing_changes(model, x), pytest.raises(UnsupportedLayer) as error:
        make(model, x, backend="torch_tensorrt", hybrid=False)
    assert f"torch_tensorrt has no converter for {operator}" in str(error.value)
    assert "(in decoder.1)" in str(error.value) and "getitem" not in str(error.value)


def test_each_layer_has_the_precision_that_was_asked_for_it():
    mapping = {"default": "fp16", "head": "fp32", nn.Conv2d: "bf16"}
    module = ttb.build(Attention().eval(), torch.randn(2, 3, 8, 8), mapping, backend="torch_tensorrt", hybrid=False)
    work = module.report.work
    assert work["asked"] == {"bf16": 1.0, "fp16": 1.0, "fp32": 1.0} and work["missed"] == []
    assert set(work["by"]) == {"bf16", "fp16", "fp32"} and work["how"].startswith("as built")


def test_a_layer_that_tensorrt_refuses_is_named_with_its_words():
    model = Wrapped(lambda x: x * x.sum().softmax(0))
    with pytest.raises(ConversionFailed, match=r"cannot convert aten._softmax.default \(in decoder.1\)") as error:
        plan_of(model, torch.randn(4, 4))
    assert "at least 2 dimensions are required" in str(error.value)


def test_a_result_of_another_shape_than_the_models_is_refused():
    captured = capture(nn.Linear(3, 2).eval(), torch.randn(4, 3))
    other = dataclasses.replace(captured.signature.outputs[0], shape=(4, 5))
    signature = dataclasses.replace(captured.signature, outputs=(other,))
    message = r"'output' is \[4, 2\] in TensorRT's network and \[4, 5\] in the model"
    with pytest.raises(ConversionFailed, match=message):
        route.build_plan(captured.program, signature, ttb.BuildOptions(), ELSEWHERE, lambda phase, fraction: None)


def test_refusals_name_the_nodes_and_compute_nothing():
    captured = capture(Wrapped(lambda x: torch.linalg.det(x) + x.sum()).eval(), torch.randn(4, 4))
    before = str(captured.program.graph)
    refused = route.TorchTensorRTBackend().refusals(captured.program, ELSEWHERE)
    assert list(refused) == ["linalg_det"] and "aten._linalg_det.default" in refused["linalg_det"]
    assert str(captured.program.graph) == before
    whole = capture(Attention().eval(), torch.randn(2, 3, 6, 6)).program
    assert route.TorchTensorRTBackend().refusals(whole, ELSEWHERE) == {}


def test_refusals_where_torchs_own_form_of_an_operator_writes_in_place():
    def scatter(x):
        return torch.diagonal_scatter(x, x[0]) + torch.exp2(x).sum()

    program = capture(Wrapped(scatter).eval(), torch.randn(4, 4)).program
    refused = route.TorchTensorRTBackend().refusals(program, ELSEWHERE)
    assert "diagonal_scatter" in refused and "linear" not in refused


class Cross(nn.Module):
    """Queries and keys of different number, and torch's causal mask, which begins at the first of both."""

    def forward(self, q, k):
        return nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)


def test_a_causal_mask_of_two_lengths_is_spelled_out():
    cross = plan_of(Cross(), (torch.randn(2, 2, 3, 8), torch.randn(2, 2, 5, 8)))
    alike = plan_of(Cross(), (torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)))
    assert cross.layers["attention_input"] == alike.layers["attention_input"] == 1
    assert cross.types["BOOL"] == 1 and "BOOL" not in alike.types
    lengths = {"q": {2: ttb.Dim(1, 3, 4, name="queries")}, "k": {2: ttb.Dim(1, 5, 6, name="keys")}}
    with pytest.raises(UnsupportedLayer, match="puts the causal mask of aten.scaled_dot_product_attention.default"):
        plan_of(Cross(), (torch.randn(2, 2, 3, 8), torch.randn(2, 2, 5, 8)), dynamic_shapes=lengths)


@pytest.mark.parametrize("draw", [torch.randperm, torch.rand, torch.randn])
def test_random_numbers_are_not_made_a_constant(draw):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + draw(x.shape[-1])

    with pytest.raises(UnsupportedLayer, match="torch_tensorrt draws the numbers of aten.rand[a-z]*.default once"):
        plan_of(Noisy(), torch.randn(4, 4))
    program = capture(Noisy().eval(), torch.randn(4, 4)).program
    assert len(route.TorchTensorRTBackend().refusals(program, ELSEWHERE)) == 1


def test_refusals_of_dtypes_that_tensorrt_lacks():
    captured = capture(Wrapped(lambda x: (x.double() * 3).float()).eval(), torch.randn(4, 4))
    refused = route.TorchTensorRTBackend().refusals(captured.program, ELSEWHERE)
    assert "TensorRT has no float64" in refused["mul"]


def test_an_operator_of_the_program_alone_is_refused_and_not_run():
    @torch.library.custom_op("torchtrt_bridge_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)
    model, x = Wrapped(lambda x: twice(torch.linalg.det(x)[None] + twice(x)).relu()).eval(), torch.randn(4, 4)
    with pytest.raises(UnsupportedLayer, match="no converter for torchtrt_bridge_test::twice"):
        ttb.build(model, x, backend="torch_tensorrt", hybrid=False)
    program = capture(model, x).program
    before = str(program.graph)
    refused = route.TorchTensorRTBackend().refusals(program, ELSEWHERE)
    assert set(refused) == {"twice", "linalg_det", "twice_1"} and "registers by itself" in refused["twice"]
    assert str(program.graph) == before


def test_where_torch_tensorrt_does_not_fit_the_reason_is_in_the_answer(monkeypatch):
    class Older:
        version = "2.10.0"
        requires = ["numpy", "torch<2.11.0,>=2.10.0"]

    captured = capture(nn.Linear(3, 2).eval(), torch.randn(1, 3))

    def reasons():
        return route.TorchTensorRTBackend().supports(captured, ELSEWHERE).reasons

    assert reasons() == ()
    monkeypatch.setattr(route, "_distribution", lambda name: Older() if name == "torch-tensorrt-rtx" else None)
    assert f"needs torch<2.11.0,>=2.10.0, and {torch.__version__[:4]}" in reasons()[0]
    monkeypatch.setattr(route, "_distribution", lambda name: Older() if name == "torch-tensorrt" else None)
    assert "is made for tensorrt, and this process uses tensorrt_rtx" in reasons()[1]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert reasons() == ("torch_tensorrt is not installed; pip install torch-tensorrt-rtx (or torch-tensorrt)",)


# -- the process -------------------------------------------------------------------------------------------------------


def test_the_callers_process_is_as_before():
    def state():
        functions = {name: getattr(torch.cuda, name) for name in dir(torch.cuda) if callable(getattr(torch.cuda, name))}
        loggers = {name for name in logging.root.manager.loggerDict if "torch_tensorrt" in name}
        return (
            functions,
            loggers,
            warnings.showwarning,
            list(warnings.filters),
            list(logging.root.handlers),
            [name for name in sys.modules if name == "tensorrt" or name.startswith("torch_tensorrt")],
            list(torch._dynamo.list_backends(exclude_tags=None)) if "torch._dynamo" in sys.modules else [],
            dict(os.environ),
        )

    model, x, refused, y = Attention().eval(), torch.randn(2, 3, 6, 6), Wrapped(torch.linalg.det).eval(), torch.eye(4)
    ttb.build(model, x, backend="onnx")  # what torch.export and torch.onnx bring in is no part of this
    before = state()
    with nothing_changes(model, x):
        ttb.build(model, x, backend="torch_tensorrt")
        with pytest.raises(UnsupportedLayer):
            ttb.build(refused, y, backend="torch_tensorrt", hybrid=False)
    assert state() == before


def test_ctrl_c_ends_a_build_within_two_seconds_and_the_next_build_works():
    def interrupt(phase, fraction):
        if phase == "converting the graph":
            began.append(time.monotonic())
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    began = []
    large = nn.Sequential(*(nn.Conv2d(16, 16, 3) for _ in range(40)))
    with pytest.raises(KeyboardInterrupt):
        plan_of(large, torch.randn(1, 16, 96, 96), progress=interrupt)
    assert time.monotonic() - began[0] < 2 and worker._process is None
    assert plan_of(nn.Linear(3, 2), torch.randn(1, 3)).results == {"output": "FLOAT"}


def test_a_crash_is_contained_and_the_next_build_works():
    def crash(phase, fraction):
        if phase == "lowering the graph":
            os.kill(worker._process._child.pid, signal.SIGSEGV)

    with pytest.raises(BuildCrashed, match="was ended by SIGSEGV"):
        plan_of(nn.Linear(3, 2), torch.randn(1, 3), progress=crash)
    assert plan_of(nn.Linear(3, 2), torch.randn(1, 3)).results == {"output": "FLOAT"}


def test_a_process_that_ended_for_want_of_work_is_started_again(monkeypatch):
    plan_of(nn.Linear(3, 2), torch.randn(1, 3))
    child = worker._process._child
    child.kill()
    child.wait()
    monkeypatch.setattr(worker.Process, "is_alive", lambda self: True)  # seen alive, and gone before the job came
    assert plan_of(nn.Linear(3, 2), torch.randn(1, 3)).results == {"output": "FLOAT"}
    assert worker._process._child is not child


def test_torchs_other_way_to_look_for_a_gpu_finds_none_either(monkeypatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning leaves it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # the process is another one then
    plan = plan_of(Attention(), torch.randn(2, 3, 8, 8), "fp16")
    assert set(plan.results.values()) == {"FLOAT"}


BROKEN = """
import sys, torch, torchtrt_bridge as ttb
sys.path.insert(0, sys.argv[1])
model, x = torch.nn.Linear(3, 2).eval(), torch.randn(1, 3)
try:
    ttb.build(model, x, backend="torch_tensorrt")
except ttb.errors.BackendUnavailable as error:
    print(error)
print(ttb.build(model, x).backend, "torch_tensorrt" in sys.modules)
"""


def test_a_package_that_does_not_import_is_a_reason_and_no_harm_to_the_other_route(tmp_path):
    (tmp_path / "torch_tensorrt").mkdir()
    (tmp_path / "torch_tensorrt" / "__init__.py").write_text("raise OSError('libtorchtrt.so: cannot open')")
    done = subprocess.run([sys.executable, "-c", BROKEN, str(tmp_path)], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0] == "torch_tensorrt is installed, but does not import: OSError: libtorchtrt.so: cannot open", done
    assert lines[1] == "onnx False"
