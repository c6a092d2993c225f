"""Every layer of :mod:`layers`, whole in TensorRT by the ONNX route, with a dynamic batch where it may have one."""

from __future__ import annotations

import layers
import pytest
import torch
from test_layers import shapes

import torchtrt_bridge as ttb

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", layers.NAMES)
def test_a_layer_is_eagers(name: str) -> None:
    if name in ("deformable convolution", "regions of interest"):
        pytest.importorskip("torchvision")
    layer = layers.make(name)
    model, inputs = layer.module.cuda(), tuple(x.cuda() for x in layer.inputs)
    fast = ttb.compile(model, inputs, backend="onnx", hybrid=False, dynamic_shapes=shapes(layer))
    assert fast.report.runtime == "tensorrt"
    tries = [inputs]
    if layer.batched:
        tries.append(tuple(torch.cat([x, x.flip(0)]) for x in inputs))
    for tensors in tries:
        torch.testing.assert_close(fast(*tensors), model(*tensors), rtol=1e-3, atol=1e-3)
