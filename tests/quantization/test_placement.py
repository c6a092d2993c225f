"""What is quantized and what is not, in the captured graph."""

from __future__ import annotations

import copy

import pytest
import torch
from models import Block, error, mlp
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.capture import capture
from torchtrt_bridge.fx_nodes import module_path, operator_name
from torchtrt_bridge.precision import Precision, cast_program
from torchtrt_bridge.quantization.calibrating import observe
from torchtrt_bridge.quantization.graph import is_dequantize, is_quantize
from torchtrt_bridge.quantization.stage import quantize

CPU = Place(torch.device("cpu"))


def quantized(model, inputs, precision="int8", **settings):
    """``(the captured model, the quantized one)``, calibrated with its own inputs."""
    captured = capture(model, inputs)
    asked = Precision.parse(precision).bind(captured.program.graph, model)
    calibration = observe(captured, [inputs])
    return captured, quantize(captured, asked, CPU, calibration, None, ttb.Quantization(**settings))[0]


def readers(captured):
    """``{module path/operator: names of its quantized arguments}`` of every operator that reads a quantized tensor."""
    found = {}
    for node in captured.program.graph.nodes:
        taken = [index for index, arg in enumerate(node.args) if isinstance(arg, torch.fx.Node) and is_dequantize(arg)]
        if taken:
            found[f"{module_path(node)}/{operator_name(node)}".removeprefix("/")] = taken
    return found


def test_convolutions_with_their_norms_residual_sums_and_linear_layers():
    model, x = Block().eval(), torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    captured, result = quantized(model, x)
    assert readers(result) == {
        "conv1/conv2d": [0, 1],
        "conv2/conv2d": [0, 1],
        "down/conv2d": [0, 1],
        "add": [1],  # the shortcut; conv2's result goes on to the sum and the ReLU as it is
        "attention/linear": [0, 1],  # no bias, no attention inside, and not fc, which makes the result
    }
    assert not [n for n in result.program.graph.nodes if "batch_norm" in operator_name(n)]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert error(captured.program.module()(x)[0], result.program.module()(x)[0]) < 0.03


def test_attention_and_the_last_layer_where_asked_for():
    model, x = Block().eval(), torch.randn(2, 3, 8, 8)
    _, result = quantized(model, x, attention=True, last_layer=True)
    found = readers(result)
    assert found["attention/matmul"] == [0, 1] and found["fc/linear"] == [0, 1]
    assert error(model(x), result.program.module()(x)[0]) < 0.03


class Masked(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options, self.head = options, nn.Linear(8, 8)

    def forward(self, x, mask=None):
        x = self.head(x)
        return nn.functional.scaled_dot_product_attention(x, x.flip(1), x, mask, **self.options)


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, None),
        ({"scale": 0.1}, torch.randn(6, 6)),
        ({}, torch.rand(6, 6) > 0.3),
        ({"is_causal": True}, None),
    ],
)
def test_attention_spelled_out_is_the_same_attention(options, mask):
    from torchtrt_bridge.quantization.attention import spell_attention_out

    model = Masked(**options).eval()
    inputs = (torch.randn(2, 6, 8), *([mask] if mask is not None else []))
    program = capture(model, inputs).program
    spelled = spell_attention_out(program)
    assert "attention" not in {operator_name(n).rpartition("_")[2] for n in spelled.graph.nodes}
    torch.testing.assert_close(spelled.module()(*inputs)[0], model(*inputs))
    kept = {n.name for n in program.graph.nodes if "attention" not in n.name}
    assert kept <= {n.name for n in spelled.graph.nodes}


def test_weights_are_stored_quantized_with_a_scale_for_each_channel():
    model = mlp()
    _, result = quantized(model, torch.randn(16, 64), smooth=0)
    state = result.program.state_dict
    numbers, scales = state["model.0.weight_quantized"], state["model.0.weight_scale"]
    assert numbers.dtype == torch.int8 and scales.dtype == torch.float32 and scales.shape == (128,)
    assert "model.0.weight" not in state and state["model.4.weight"] is not None
    torch.testing.assert_close(numbers.float() * scales[:, None], model[0].weight.detach(), atol=2e-3, rtol=0)
    assert numbers.abs().amax(1).eq(127).all()  # all of the range is used, and it is symmetric


def test_a_residual_stream_is_not_quantized():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True).eval()
    model = nn.Sequential(layer, nn.Linear(16, 2)).eval()
    _, result = quantized(model, torch.randn(2, 5, 16))
    assert not [name for name in readers(result) if name.endswith("add")]


def test_layers_keep_the_precision_that_a_mapping_gives_them():
    model, x = mlp(), torch.randn(16, 64)
    _, result = quantized(model, x, {"default": "int8", "2": "fp32"})
    assert readers(result) == {"0/linear": [0, 1]}
    _, result = quantized(model, x, {"default": "int8", "2": "fp8"})
    formats = {n.meta["val"].dtype for n in result.program.graph.nodes if is_quantize(n)}
    assert formats == {torch.int8, torch.float8_e4m3fn}


def test_float8_is_rounded_once():
    model, x = mlp(), torch.randn(16, 64)
    _, result = quantized(model, x, "fp8", method="max")
    scale = (x.abs().max() / 448).item()
    nearest = (x / scale).to(torch.float8_e4m3fn).float() * scale
    pair = next(n for n in result.program.graph.nodes if is_quantize(n))
    found = pair.target(x, *pair.args[1:]).float() * pair.args[1]
    torch.testing.assert_close(found, nearest)
    assert error(x, found) < 0.03  # torch's own operator for it: 0.05 and more


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("other", ["fp16", "bf16", "fp32"])
def test_what_is_dequantized_has_the_other_precision(precision, other):
    model, x = mlp(), torch.randn(16, 64)
    _, result = quantized(model, x, precision)
    cast = cast_program(result.program, Precision(precision, other=other)).program
    dtype = Precision(other).dtype
    for node in cast.graph.nodes:
        if is_dequantize(node):
            assert node.meta["val"].dtype == dtype
            assert all(
                arg.meta["val"].dtype == torch.float32 for arg in node.args[1:] if isinstance(arg, torch.fx.Node)
            )
    exact, rounded = result.program.module()(x)[0], cast.module()(x)[0]
    assert rounded.dtype == torch.float32
    assert error(exact, rounded) < {"fp16": 0.02, "bf16": 0.06, "fp32": 1e-6}[other]


def test_smoothing_keeps_the_product_and_saves_a_layer_with_outliers():
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(64, 64)
    x[:, 7] *= 100
    exact = model(x)
    errors = {}
    for strength in (0, 0.8):
        _, result = quantized(model, x, smooth=strength)
        errors[strength] = error(exact, result.program.module()(x)[0])
    assert errors[0.8] < errors[0] / 2
