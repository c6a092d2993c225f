"""Converters' TensorRT layers, run on every route: eager's numbers, over dynamic ranges, from a file too."""

from __future__ import annotations

import copy

import pytest
import torch
from comparing import assert_same
from older_versions import faults_of_rtx_14
from own_layers import CONVERTERS, Attention, Model, Norm, Outer, several_converter
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.selection import BACKENDS
from torchtrt_bridge.verify import TF32

pytestmark = pytest.mark.gpu
LIMITS = {"fp32": (1e-2, 1e-2), "fp16": (3e-2, 3e-2), "bf16": (2e-1, 2e-1)}  # RTX 1.4 rounds fp32 products to TF32


def require(route):
    from torchtrt_bridge.backends.base import Place
    from torchtrt_bridge.capture import capture

    backend = next(each for each in BACKENDS if each.name == route)
    captured = capture(nn.Linear(2, 2).cuda().eval(), torch.randn(1, 2, device="cuda"))
    support = backend.supports(captured, Place(torch.device("cuda")))
    if not support.possible:
        pytest.skip("; ".join(support.reasons))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("route", ["onnx", "torch_tensorrt"])
def test_the_layers_compute_what_eager_does(route, precision, tmp_path):
    require(route)
    model = Model(32).cuda().eval()
    fast = ttb.compile(
        model,
        torch.randn(2, 3, 32, device="cuda"),
        precision,
        backend=route,
        hybrid=False,
        converters=CONVERTERS,
        dynamic_shapes={"x": {0: ttb.Dim(1, 2, 4), 1: ttb.Dim(1, 3, 9)}},
        verify=TF32 if precision == "fp32" else True,
    )
    assert any(note.startswith("converters made the TensorRT layers of own_layers::rms") for note in fast.report.notes)
    fast.save(tmp_path / "fast.safetensors")
    rtol, atol = LIMITS[precision]
    for module in (fast, ttb.load(tmp_path / "fast.safetensors")):
        for shape in ((2, 3, 32), (1, 1, 32), (4, 9, 32)):
            x = torch.randn(shape, device="cuda")
            assert_same(module(x), model(x), rtol, atol)


@pytest.mark.parametrize("route", ["onnx", "torch_tensorrt"])
def test_fixed_sizes_and_a_model_in_half_itself(route):
    require(route)
    model = nn.Sequential(Norm(16), Attention(16)).cuda().half().eval()
    x = torch.randn(2, 5, 16, device="cuda").half()
    with faults_of_rtx_14():
        fast = ttb.compile(model, x, backend=route, hybrid=False, converters=CONVERTERS)
    assert_same(fast(x), model(x), 3e-2, 3e-2)


@pytest.mark.parametrize("route", ["onnx", "torch_tensorrt"])
def test_a_module_with_its_parameters_and_a_size(route):
    require(route)
    model = Outer().cuda().eval()
    before = copy.deepcopy(model.state_dict())
    fast = ttb.compile(
        model, torch.randn(3, 4, device="cuda"), backend=route, hybrid=False, converters=[several_converter],
        dynamic_batch=(1, 3, 7), verify=TF32,
    )  # fmt: skip
    assert any("TensorRT layers of own_layers.Several (1 time)" in note for note in fast.report.notes)
    for rows in (1, 3, 7):
        x = torch.randn(rows, 4, device="cuda")
        assert_same(fast(x), model(x), 1e-2, 1e-2)
    assert_same(model.state_dict(), before, 0.0, 0.0)
