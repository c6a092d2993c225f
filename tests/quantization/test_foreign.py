"""Models that were quantized elsewhere are taken as they are: the same results, in the same numbers."""

from __future__ import annotations

import pytest
import torch
from models import error, mlp
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import ConversionFailed

X = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))


def compiled_error(model, precision="fp32"):
    """Of the module on the CPU against the quantized model itself; both round to the same numbers."""
    fast = ttb.compile(model, X, precision, hybrid=False)
    assert fast.report.verification  # whose limits allow that a value between two numbers goes to either
    return error(model(X), fast(X))


class FakeQuantized(nn.Module):
    """As QAT and ModelOpt leave a layer: its input and its weight rounded by fixed scales."""

    def __init__(self, asymmetric=False):
        super().__init__()
        self.layer = nn.Linear(64, 8)
        weight = self.layer.weight.detach()
        self.register_buffer("scale", torch.tensor([0.03]))
        self.register_buffer("zero", torch.tensor([3 if asymmetric else 0], dtype=torch.int32))
        self.register_buffer("weight_scale", weight.abs().amax(1) / 127)
        self.register_buffer("weight_zero", torch.zeros(8, dtype=torch.int32))

    def forward(self, x):
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, -128, 127)
        scales = self.weight_scale, self.weight_zero
        weight = torch.fake_quantize_per_channel_affine(self.layer.weight, *scales, 0, -127, 127)
        return nn.functional.linear(x, weight, self.layer.bias)


def test_fake_quantized_layers():
    model = FakeQuantized().eval()
    fast = ttb.compile(model, X, "int8", backend="onnx")  # needs no data
    assert error(model(X), fast(X)) < 1e-6
    assert fast.report.runtime == "onnxruntime" and b"QuantizeLinear" in fast.state_dict()["engine"].numpy().tobytes()


@pytest.fixture
def modelopt():
    """The operator that ModelOpt registers, computed as it computes it."""
    library = torch.library.Library("tensorrt", "FRAGMENT")
    schema = "quantize_op(Tensor x, Tensor amax, int num_bits=8, int exponent_bits=0, bool unsigned=False,"
    library.define(f"{schema} bool narrow_range=True) -> Tensor")

    def rounded(x, amax, num_bits=8, exponent_bits=0, unsigned=False, narrow_range=True):
        scale = amax / (448 if exponent_bits else 127)
        return (x / scale).to(torch.float8_e4m3fn).float() * scale if exponent_bits else (x / scale).round() * scale

    library.impl("quantize_op", rounded, "CompositeExplicitAutograd")
    torch.library.register_fake("tensorrt::quantize_op", lambda x, *rest: torch.empty_like(x), lib=library)
    yield
    library._destroy()


class OfModelOpt(nn.Module):
    def __init__(self, exponent):
        super().__init__()
        self.layer, self.exponent = nn.Linear(64, 8), exponent
        self.register_buffer("amax", torch.tensor(5.0))
        weight = self.layer.weight.detach().abs()
        self.register_buffer("weight_amax", weight.amax() if exponent else weight.amax(1, keepdim=True))

    def forward(self, x):
        quantize = torch.ops.tensorrt.quantize_op
        x = quantize(x, self.amax, 8, self.exponent, False, True)
        weight = quantize(self.layer.weight, self.weight_amax, 8, self.exponent, False, True)
        return nn.functional.linear(x, weight, self.layer.bias)


@pytest.mark.parametrize("exponent", [0, 4])
def test_modules_of_modelopt(modelopt, exponent):
    model = OfModelOpt(exponent).eval()
    program = ttb.compile(model, X, hybrid=False, source=True).state_dict()["source"].numpy().tobytes()
    assert b"quantize_op" not in program and b"dequantize_per_tensor" in program
    assert compiled_error(model) < 1e-5


def test_an_asymmetric_one_is_refused_with_its_place():
    with pytest.raises(ConversionFailed, match="fake_quantize_per_tensor_affine .* is not symmetric"):
        ttb.compile(FakeQuantized(asymmetric=True).eval(), X)


def test_the_result_of_pt2e_with_our_quantizer():
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from torchtrt_bridge.quantization.quantizer import TensorRTQuantizer

    exact = mlp()
    for precision, limit in (("int8", 0.03), ("fp8", 0.15)):
        prepared = prepare_pt2e(torch.export.export(exact, (X,)).module(), TensorRTQuantizer(precision))
        prepared(X)
        converted = convert_pt2e(prepared)
        assert 1e-4 < error(exact(X), converted(X)) < limit
        assert compiled_error(converted, precision) < 5e-3  # a value between two numbers may go to the other


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "IntxWeightOnlyConfig"])
def test_what_quantize_of_torchao_makes(kind):
    quantization = pytest.importorskip("torchao.quantization")
    options = {}
    if kind == "IntxWeightOnlyConfig":
        options = {"weight_dtype": torch.int4, "granularity": quantization.PerGroup(32)}
    model, exact = mlp(), mlp()
    exact.load_state_dict(model.state_dict())
    quantization.quantize_(model, getattr(quantization, kind)(**options))
    assert 1e-4 < error(exact(X), model(X)) < 0.2
    assert compiled_error(model) < 1e-5


def test_scales_that_are_chosen_while_it_runs_are_refused():
    quantization = pytest.importorskip("torchao.quantization")
    model = mlp()
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(ConversionFailed, match="chooses scales while it runs"):
        ttb.compile(model, X)


def test_a_saved_program_with_float8_loads_in_another_process(tmp_path):
    import subprocess
    import sys

    fast = ttb.compile(mlp(), X, "fp8", calibration=[X])
    assert fast.report.runtime == "torch"
    fast.save(tmp_path / "fp8.safetensors")
    torch.save((X, fast(X)), tmp_path / "call.pt")
    code = "import torch, torchtrt_bridge as ttb; x, y = torch.load('call.pt');"
    code += "assert torch.equal(ttb.load('fp8.safetensors')(x), y)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
