"""Operators as TensorRT's own layers, run: eager's numbers on the routes, over dynamic sizes."""

from __future__ import annotations

import pytest
import torch
from comparing import assert_same
from torch import nn
from torch.nn import functional as F
from torchtrt_bridge.converters.tensorrt_layers import attention, bicubic, bilinear, rms_norm

import torchtrt_bridge as ttb
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.backends.torch_tensorrt import TorchTensorRTBackend
from torchtrt_bridge.capture import capture
from torchtrt_bridge.verify import TF32

pytestmark = pytest.mark.gpu
LIMITS = {"fp32": (1e-2, 1e-2), "fp16": (3e-2, 3e-2)}  # RTX 1.4 rounds fp32 products to TF32


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(1 + torch.arange(16) / 16)

    def forward(self, x):
        return self.function(x, self.weight)


CASES = {
    "attention": (attention, lambda x, w: F.scaled_dot_product_attention(x, x * w, x)),
    "causal": (attention, lambda x, w: F.scaled_dot_product_attention(x, x * w, x, is_causal=True, scale=0.3)),
    "rms norm": (rms_norm, lambda x, w: F.rms_norm(x, (16,), w, 1e-5)),
    "rms norm over two": (rms_norm, lambda x, w: F.rms_norm(x, (4, 16), None, 1e-5)),
    "bicubic": (bicubic, lambda x, w: F.interpolate(x, scale_factor=2, mode="bicubic")),
    "bicubic to a size": (bicubic, lambda x, w: F.interpolate(x, size=(9, 11), mode="bicubic", align_corners=True)),
    "bilinear": (bilinear, lambda x, w: F.interpolate(x, scale_factor=(3, 2), mode="bilinear")),
    "bilinear to a size": (bilinear, lambda x, w: F.interpolate(x, size=(3, 40), mode="bilinear", align_corners=True)),
}


@pytest.mark.parametrize(("route", "precision"), [("onnx", "fp32"), ("onnx", "fp16"), ("torch_tensorrt", "fp16")])
@pytest.mark.parametrize("name", CASES)
def test_the_layer_computes_what_eager_does(name, precision, route):
    converter, function = CASES[name]
    model = Applied(function).cuda().eval()
    x = torch.randn(2, 4, 4, 16, device="cuda")
    if route == "torch_tensorrt":
        support = TorchTensorRTBackend().supports(capture(model, x), Place(torch.device("cuda")))
        if not support.possible:
            pytest.skip("; ".join(support.reasons))
    axis = 0 if name == "rms norm over two" else 2
    fast = ttb.compile(
        model, x, precision, backend=route, hybrid=False, converters=[converter],
        dynamic_shapes={"x": {axis: ttb.Dim(2, 4, 8)}}, verify=TF32 if precision == "fp32" else True,
    )  # fmt: skip
    assert any("TensorRT layers of" in note for note in fast.report.notes)
    for size in (2, 5, 8):
        shape = [2, 4, 4, 16]
        shape[axis] = size
        x = torch.randn(shape, device="cuda")
        assert_same(fast(x), model(x), *LIMITS[precision])
