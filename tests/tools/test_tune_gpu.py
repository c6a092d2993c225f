"""ttb.tune_precision() on a GPU: what PyTorch's fp16 says is enough for the engine, which is built and measured."""

from __future__ import annotations

import pytest
import torch
from overflowing import Between, Stream, Uneven, fewest_by_trying_all, made

import torchtrt_bridge as ttb
from torchtrt_bridge.capture import capture

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", [Between, Stream])
def test_overflow_is_mended_by_at_most_twice_the_fewest_layers(kind):
    model, x = made(kind)
    model, x = model.cuda(), x.cuda()
    found = ttb.tune_precision(model, x, target_error=1e-2, backend="onnx")
    print(found)
    assert found.module.made.runtime == "tensorrt"
    assert 0 < len(found.raised) <= 2 * fewest_by_trying_all(capture(model, x), 1e-2)
    with torch.no_grad():
        expected = model(x)
    fast = ttb.compile(model, x, found.precision, backend="onnx", verify=ttb.Tolerance(1e-2, 5e-2, 0.0))
    for module in (found.module, fast):
        assert ((module(x) - expected).norm() / expected.norm()).item() <= 1e-2


def test_layers_that_int8_rounds_too_much_stay_in_16_bits():
    pytest.importorskip("torchao")
    model, x = made(Uneven)
    model, x, data = model.cuda(), x.cuda(), [torch.randn(64, 16).cuda()]
    found = ttb.tune_precision(model, x, target_error=3e-2, low="int8", calibration=data, backend="onnx")
    print(found)
    assert found.module.made.runtime == "tensorrt" and found.high == "fp16"
    assert 0 < len(found.raised) < 3 and found.low_score > 3e-2 >= found.score
    with torch.no_grad():
        expected = model(x)
    assert ((found.module(x) - expected).norm() / expected.norm()).item() <= 3e-2
