"""A norm of half values with a float weight gives floats in TensorRT's network too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchtrt_bridge.backends.onnx_graph import serialize, to_onnx
from torchtrt_bridge.capture import capture
from torchtrt_bridge.precision import Precision, cast_program

trt = pytest.importorskip("tensorrt_rtx")


class SpelledOut(nn.Module):
    """A linear layer, whose result is half in fp16, and an RMS norm as models write it, which stays in float."""

    def __init__(self):
        super().__init__()
        self.linear, self.weight = nn.Linear(16, 16), nn.Parameter(torch.rand(16))

    def forward(self, x):
        x = self.linear(x)
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype) * self.weight


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_fused_rms_norm_gives_what_the_program_gives(opset, precision):
    program = cast_program(capture(SpelledOut().eval(), torch.randn(4, 16)).program, Precision.parse(precision)).program
    model = to_onnx(program, ["x"], ["y"], opset)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(serialize(model)), parser.get_error(0).desc()
    assert network.get_output(0).dtype == trt.float32
    assert any(node.op_type == "RMSNormalization" for node in model.graph) == (opset == 23)
