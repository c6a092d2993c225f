"""Converters' TensorRT layers on the Torch-TensorRT route, in its process. tests/test_layers_gpu.py runs them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from own_layers import CONVERTERS, Model, Outer, attention_converter, rms, several_converter, wrong_converter

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import ConverterFailed

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_tensorrt") is None, reason="torch_tensorrt is not installed"
)
MADE = "converters made the TensorRT layers of own_layers::rms (2 times), own_layers::attention (1 time)"


def build(converters, precision="fp32", **options):
    options = {"backend": "torch_tensorrt", "hybrid": False, "converters": converters, **options}
    return ttb.build(Model().eval(), torch.randn(2, 3, 8), precision, **options)


@pytest.mark.parametrize(("precision", "dynamic"), [("fp32", (1, 2, 4)), ("fp16", None)])
def test_the_forms_make_layers_in_its_process(precision, dynamic):
    fast = build(CONVERTERS, precision, dynamic_batch=dynamic)
    assert MADE in fast.report.notes
    dtypes = [spec.dtype for spec in fast.signature.outputs]
    assert dtypes == ["float32", "float32"]


def test_a_module_goes_there_with_its_attributes():
    fast = ttb.build(
        Outer().eval(), torch.randn(2, 4), backend="torch_tensorrt", hybrid=False, converters=[several_converter],
        dynamic_batch=(1, 2, 4),
    )  # fmt: skip
    assert "converters made the TensorRT layers of own_layers.Several (1 time)" in fast.report.notes


def test_a_mistake_there_is_told_by_converter_and_place():
    with pytest.raises(ConverterFailed, match=r"own_layers::rms \(in first\).*is float32\[48\], and must be float32"):
        build([wrong_converter, attention_converter])
    build(CONVERTERS)  # nothing of it is left behind


def test_a_form_that_cannot_cross_leaves_its_aten_form():
    local = ttb.converter("own_layers::rms", register=False)(lambda x, weight, eps: rms(x, weight, eps))
    local.tensorrt(lambda ctx, x, weight, eps: 1 / 0)
    fast = build([local, attention_converter])
    notes = " ".join(fast.report.notes)
    assert "own_layers::rms is not to be found in test_torch_tensorrt_calls" in notes and "its ATen form" in notes
    assert "layers of own_layers::attention (1 time)" in notes
