"""Operators as TensorRT's own layers: which calls they take, and engines of them. test_tensorrt_layers_gpu.py runs
them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.nn import functional as F
from torchtrt_bridge.converters import tensorrt_layers
from torchtrt_bridge.converters.tensorrt_layers import attention, bicubic, bilinear, rms_norm

import torchtrt_bridge as ttb
from torchtrt_bridge.registry.choice import accepting

EVERY = [attention, rms_norm, bicubic, bilinear]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(1 + torch.arange(16) / 16)

    def forward(self, x):
        x = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        x = F.rms_norm(x, (16,), self.weight, 1e-5)
        larger = F.interpolate(x, scale_factor=2, mode="bicubic")
        return larger, F.interpolate(larger, size=(9, 11), mode="bilinear", align_corners=True)


def test_those_in_default_are_registered_and_no_others():
    listed = {registration.target.name for registration in ttb.converter.list() if "tensorrt" in registration.forms}
    by_name = {name: value for name, value in vars(tensorrt_layers).items() if value in EVERY}
    for name, each in by_name.items():
        assert (each.registration.target.name in listed) == (name in tensorrt_layers.DEFAULT), name
    assert tensorrt_layers.DEFAULT <= set(by_name)


@pytest.mark.parametrize("route", ["onnx", "torch_tensorrt"])
def test_each_becomes_a_layer_whatever_the_sizes(route):
    if route == "torch_tensorrt" and importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")
    dynamic = {"x": {0: ttb.Dim(1, 2, 4), 2: ttb.Dim(4, 8, 16)}}
    fast = ttb.build(
        Model().eval(), torch.randn(2, 4, 8, 16), "fp16", backend=route, hybrid=False, dynamic_shapes=dynamic,
        converters=EVERY,
    )  # fmt: skip
    (note,) = (note for note in fast.report.notes if "TensorRT layers of" in note)
    assert all(f"{each.registration.target} (1 time)" in note for each in EVERY)


def query(*shape):
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("converter", "args", "kwargs", "why"),
    [
        (attention, (query(1, 2, 3, 4),) * 3, {}, None),
        (attention, (query(1, 2, 3, 4),) * 3, {"is_causal": True}, None),
        (attention, (query(2, 3, 4),) * 3, {}, "four dimensions"),
        (attention, (query(1, 2, 3, 4),) * 3, {"attn_mask": query(3, 3)}, "without a mask"),
        (attention, (query(1, 4, 3, 4), *(query(1, 2, 3, 4),) * 2), {"enable_gqa": True}, "as many heads"),
        (attention, (query(1, 2, 3, 4), *(query(1, 2, 5, 4),) * 2), {"is_causal": True}, "causal mask begins"),
        (rms_norm, (query(2, 4), [4]), {"eps": 1e-6}, None),
        (rms_norm, (query(2, 4), [4]), {}, "another eps"),
        (bicubic, (query(1, 1, 4, 4), None, False, [2.0, 3.0]), {}, None),
        (bilinear, (query(1, 1, 4, 4), [7, 9], True, None), {}, None),
        (bicubic, (query(1, 1, 4, 4), None, False, [1.5, 1.5]), {}, "whole number"),
    ],
)
def test_calls_are_taken_or_left_for_a_reason(converter, args, kwargs, why):
    reasons = []
    taking = accepting([converter.registration], args, kwargs, rejected=lambda _, reason: reasons.append(reason))
    assert bool(taking) == (why is None)
    if why is not None:
        assert why in reasons[0]
