"""int8 and fp8 on a GPU: the routes agree, and what is computed is what the graph says."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from digits import SmallViT, accuracy, digits, trained
from models import error, mlp
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import BridgeError

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def calibrated():
    torch.manual_seed(0)
    model = nn.Sequential(mlp(), nn.GELU(), nn.Linear(8, 64), mlp()).eval().cuda()
    data = [torch.randn(64, 64, device="cuda") for _ in range(8)]
    return model, data[0], ttb.calibrate(model, data[0], data)


def compiled(calibrated, precision, backend, **settings):
    model, x, calibration = calibrated
    return ttb.compile(
        model, x, precision, calibration=calibration, backend=backend, hybrid=False,
        quantize=ttb.Quantization(**settings), build=ttb.BuildOptions(minimum_share=0.0),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_two_routes_differ_by_no_more_than_either_from_fp32(calibrated, precision):
    if importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")
    model, x, _ = calibrated
    exact = model(x)
    onnx, other = (compiled(calibrated, precision, backend)(x) for backend in ("onnx", "torch_tensorrt"))
    errors = error(exact, onnx), error(exact, other)
    between = error(onnx, other)
    print(f"{precision}: onnx {errors[0]:.4f}, torch_tensorrt {errors[1]:.4f} from fp32; {between:.4f} from each other")
    assert between <= min(errors) and max(errors) < 0.2


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_engine_computes_what_pytorch_computes_of_the_same_graph(calibrated, precision):
    """The quantized graph run by PyTorch on the CPU rounds to the same numbers."""
    model, x, calibration = calibrated
    fast = compiled(calibrated, precision, "onnx", other="fp32")
    reference = ttb.compile(
        copy.deepcopy(model).cpu(), x.cpu(), precision, calibration=calibration, backend="onnx", device="cpu"
    )
    exact = model(x)
    assert error(reference(x.cpu()).cuda(), fast(x)) < error(exact, fast(x))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_vit_on_digits_keeps_its_accuracy(precision):
    pytest.importorskip("sklearn")
    model = trained(SmallViT)
    data = digits()[0]
    calibration = ttb.calibrate(model, data.tensors[0][:60], data, calibration_input=0, batches=8)
    exact = accuracy(model)
    try:
        on_gpu = trained(SmallViT).cuda()
        fast = ttb.compile(
            on_gpu, data.tensors[0][:60].cuda(), {"default": precision, "patches": "fp16"}, calibration=calibration,
            build=ttb.BuildOptions(minimum_share=0.0),
        )  # fmt: skip
        found = accuracy(_from_cpu(fast))
    finally:
        model.cpu()
    print(f"{precision}: {exact:.2%} in fp32, {found:.2%}")
    assert found >= exact - 0.01


def _from_cpu(module):
    return lambda x: module(x.cuda()).cpu()


@pytest.mark.parametrize("weights", ["int8", "int4", "fp8"])
def test_weight_only(calibrated, weights):
    model, x, _ = calibrated
    settings = ttb.Quantization(weight_only=weights, group=64)
    big = nn.Sequential(nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 1024)).eval().cuda()
    y = torch.randn(16, 1024, device="cuda")
    try:
        fast = ttb.compile(big, y, "fp16", quantize=settings, backend="onnx", hybrid=False, verify=False)
    except BridgeError as refused:
        pytest.fail(f"weight_only={weights!r} is refused here: {str(refused)[:400]}")
    assert 1e-4 < error(big(y), fast(y)) < {"int8": 0.02, "fp8": 0.06, "int4": 0.2}[weights]
