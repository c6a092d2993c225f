"""The Torch-TensorRT route on a GPU: eager's numbers, from here and from a fresh process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from comparing import assert_same, nothing_changes
from older_versions import faults_of_rtx_14, rounds_to_tf32
from test_torch_tensorrt import Cross, Forms
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.backends import torch_tensorrt as route
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.verify import TF32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("torch_tensorrt") is None, reason="torch_tensorrt is not installed"),
]

LIMITS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2}


def linear_error(make, **how) -> float:
    layer, x = nn.Linear(512, 512).eval().cuda(), randn(64, 512)
    fast = make(layer, x, backend="torch_tensorrt", **how)
    expected = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    return float((fast(x).double() - expected).norm() / expected.norm())

RELOAD = """
import sys, torch, torchtrt_bridge as ttb
state, inputs, result = sys.argv[1:]
fast = ttb.TRTModule()
fast.load_state_dict(torch.load(state))
torch.save([fast(*[x.cuda() for x in args]) for args in torch.load(inputs)], result)
assert not any(name.startswith("torch_tensorrt") for name in sys.modules)
"""


def mlp():
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8), nn.LogSoftmax(-1))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 1))
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.Hardswish())
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.depthwise(x)).mean((2, 3)))


class Block(nn.Module):
    """Attention with a mask that is not causal, as a bias or as booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x, mask):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Kinds(nn.Module):
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
            "each": scores.argmax(-1),
            "total": scores.sum(),
            "int32": index.to(torch.int32) + 1,
            "int64": index * 3,
            "positive": x > 0,
        }


def eager(model, *args):
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        return model(*args)


def check(model, args, others, precision="fp32", **how):
    """Compile, and compare on ``others``; the compiled module."""
    limit = LIMITS[precision]
    if precision == "fp32" and rounds_to_tf32():
        limit, how = 5e-3, {**how, "verify": TF32}
    with nothing_changes(model, *args):
        with faults_of_rtx_14():
            fast = ttb.compile(model, args, precision, backend="torch_tensorrt", hybrid=False, **how)
    assert fast.backend == "torch_tensorrt" and fast.report.runtime == "tensorrt"
    for other in others:
        assert_same(fast(*other), eager(model, *other), rtol=limit, atol=limit)
    return fast


def randn(*shape):
    return torch.randn(*shape, device="cuda")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_mlp(precision):
    check(mlp().eval().cuda(), (randn(4, 32),), [(randn(4, 32),) for _ in range(3)], precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_conv_net_of_any_batch_and_size(precision):
    shapes = {"x": {0: ttb.Dim(1, 2, 8), 2: ttb.Dim(8, 16, 40)}}
    others = [(randn(batch, 3, size, 16),) for batch, size in [(1, 8), (8, 40), (3, 18), (1, 8)]]
    check(ConvNet().eval().cuda(), (randn(2, 3, 16, 16),), others, precision, dynamic_shapes=shapes)


@pytest.mark.parametrize("kind", ["bias", "booleans"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_attention_heeds_a_mask_that_is_not_causal(precision, kind):
    def arguments(batch):
        mask = randn(6, 6) * 4
        return randn(batch, 6, 32), (mask if kind == "bias" else mask > -3)

    others = [arguments(batch) for batch in (1, 3, 4)]
    shapes = {"x": {0: ttb.Dim(1, 2, 4)}}
    check(Block().eval().cuda(), arguments(2), others, precision, dynamic_shapes=shapes)


@pytest.mark.parametrize("queries", [3, 5, 7])
def test_a_causal_mask_begins_where_torchs_does(queries):
    def arguments():
        return randn(2, 2, queries, 8), randn(2, 2, 5, 8)

    try:
        check(Cross().eval().cuda(), arguments(), [arguments()], "fp16")
    except ttb.errors.UnsupportedLayer as error:
        pytest.skip(f"Torch-TensorRT 2.11 takes no attention of two lengths: {error}")


def test_every_kind_of_result_comes_back_in_its_dtype():
    def arguments(rows):
        return randn(rows, 3), torch.randint(-9, 9, (2,), device="cuda")

    shapes = {"x": {0: ttb.Dim(1, 2, 4)}}
    fast = check(Kinds().eval().cuda(), arguments(2), map(arguments, (1, 2, 4)), dynamic_shapes=shapes)
    x, index = arguments(3)
    assert fast(x, index)["input"] is x


def test_fp32_is_true_fp32():
    if rounds_to_tf32():
        pytest.skip("this TensorRT rounds fp32 products to TF32 whatever is asked")
    assert linear_error(ttb.compile) < 1e-5  # TF32's is 3e-4


def test_embedding_and_integer_inputs():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)

        def forward(self, ids, mask):
            x = self.table(ids) * mask.unsqueeze(-1)
            logits = self.head(x.cumsum(1))
            return logits, logits.argmax(-1), mask.sum(1)

    def arguments(batch, words):
        return torch.randint(0, 50, (batch, words), device="cuda"), torch.randint(0, 2, (batch, words), device="cuda")

    batch, words = ttb.Dim(1, 2, 4, name="batch"), ttb.Dim(1, 5, 9, name="words")
    shapes = {"ids": {0: batch, 1: words}, "mask": {0: batch, 1: words}}
    others = [arguments(1, 1), arguments(4, 9), arguments(3, 7)]
    check(Tokens().eval().cuda(), arguments(2, 5), others, dynamic_shapes=shapes)


@pytest.mark.parametrize("dynamic", [False, True])
def test_forms_of_operators_that_it_lacks(dynamic):
    def arguments(batch):
        return randn(batch, 5, 8), torch.tensor(2.0, device="cuda"), torch.randint(0, 5, (batch, 3), device="cuda")

    batch = ttb.Dim(1, 2, 4, name="batch")
    shapes = {"x": {0: batch}, "index": {0: batch}} if dynamic else None
    others = [arguments(rows) for rows in ((1, 3, 4) if dynamic else (2, 2))]
    check(Forms().eval().cuda(), arguments(2), others, dynamic_shapes=shapes)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_fresh_process_loads_what_was_saved(precision, tmp_path):
    model = ConvNet().eval().cuda()
    fast = check(model, (randn(2, 3, 16, 16),), [], precision, dynamic_shapes={"x": {0: ttb.Dim(1, 2, 8)}})
    inputs = [(torch.randn(batch, 3, 16, 16),) for batch in (1, 8, 5)]
    torch.save(fast.state_dict(), tmp_path / "state")
    torch.save(inputs, tmp_path / "inputs")
    arguments = [sys.executable, "-c", RELOAD, *(str(tmp_path / name) for name in ("state", "inputs", "result"))]
    subprocess.run(arguments, check=True, timeout=300)
    for (x,), result in zip(inputs, torch.load(tmp_path / "result")):
        assert_same(result, eager(model, x.cuda()), rtol=1e-2, atol=1e-2)


def test_a_plan_for_elsewhere_runs_here():
    model = ConvNet().eval().cuda()
    plan = ttb.build(model, randn(2, 3, 16, 16), "fp16", backend="torch_tensorrt")
    fast = ttb.TRTModule()
    fast.load_state_dict(plan.state_dict())
    x = randn(2, 3, 16, 16)
    assert_same(fast(x), eager(model, x), rtol=1e-2, atol=1e-2)


def test_a_model_captured_on_the_cpu_runs_on_the_gpu():
    cpu = ConvNet().eval()
    fast = ttb.compile(cpu, torch.randn(2, 3, 16, 16), "fp16", backend="torch_tensorrt", device="cuda", hybrid=False)
    x = randn(2, 3, 16, 16)
    assert_same(fast(x), eager(cpu, x.cpu()).cuda(), rtol=1e-2, atol=1e-2)


def test_refusals_on_a_gpu():
    class Det(nn.Module):
        def forward(self, x):
            return torch.linalg.det(x) + x.sum()

    from torchtrt_bridge.capture import capture

    captured = capture(Det().eval(), randn(4, 4))
    refused = route.TorchTensorRTBackend().refusals(captured.program, Place(torch.device("cuda", 0)))
    assert list(refused) == ["linalg_det"]
    with pytest.raises(ttb.errors.UnsupportedLayer, match="_linalg_det"):
        ttb.compile(Det().eval(), randn(4, 4), backend="torch_tensorrt", hybrid=False)
