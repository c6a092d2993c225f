"""int8 keeps what a model knows: digits by a small CNN and a small ViT, trained here."""

from __future__ import annotations

import pytest
from digits import SmallCNN, SmallViT, accuracy, digits, trained

import torchtrt_bridge as ttb

pytest.importorskip("sklearn")


@pytest.mark.parametrize("kind", [SmallCNN, SmallViT])
def test_int8_loses_at_most_half_a_point_on_held_out_digits(kind):
    model, data = trained(kind), digits()[0]
    images = data.tensors[0][:60]
    calibration = ttb.calibrate(model, images, data, calibration_input=0, batches=8)
    exact = accuracy(model)
    assert exact > 0.95
    settings = ttb.Quantization(attention=True)  # the ViT's; the CNN has none
    fast = ttb.compile(model, images, "int8", calibration=calibration, quantize=settings, backend="onnx")
    found = accuracy(fast)
    print(f"{kind.__name__}: fp32 {exact:.2%}, int8 {found:.2%}")
    assert fast.report.runtime == "onnxruntime" and found >= exact - 0.005
