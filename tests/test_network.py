"""Networks written by hand: what goes in and comes out, dynamic sizes, files, and mistakes told by name. Built without
a GPU; test_network_gpu.py runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import ConverterFailed, InvalidInput, InvalidOption, VerificationFailed
from torchtrt_bridge.network import _captured
from torchtrt_bridge.network_inputs import Given
from torchtrt_bridge.precision import Precision
from torchtrt_bridge.trt.conversion import ConversionContext
from torchtrt_bridge.trt.flavor import flavor
from torchtrt_bridge.verify import verify

pytest.importorskip("tensorrt_rtx")
WEIGHT = torch.linspace(-1, 1, 12).reshape(4, 3)


def project(ctx, x):
    """``x @ WEIGHT``, for x of any rank."""
    a, b = ctx.broadcast(x, ctx.constant(WEIGHT))
    none = ctx.trt.MatrixOperation.NONE
    return ctx.network.add_matrix_multiply(a, none, b, none)


def build(function, inputs, **options):
    return ttb.from_network(function, inputs, target="portable", **options)


def test_its_results_are_compared_with_the_references_though_there_is_no_program():
    x = torch.randn(2, 4)
    captured = _captured(lambda x: x @ WEIGHT, Given.parse(project, x, None, None), build(project, x).signature)
    (row,) = verify(captured, captured.eager, Precision("fp32"))
    assert row.passed
    with pytest.raises(VerificationFailed):
        verify(captured, lambda tensors: [2 * tensor for tensor in captured.eager(tensors)], Precision("fp32"))


@pytest.fixture
def ctx():
    """A context around an empty network, which is never built."""
    bound = flavor()
    builder = bound.trt.Builder(bound.logger)
    context = ConversionContext(bound, builder.create_network(0))
    context.builder = builder  # which the network needs alive
    return context


def test_the_signature_is_made_from_the_function_and_the_example():
    def network(ctx, x, *more):
        return project(ctx, x)

    fast = build(network, (torch.randn(2, 4), torch.ones(2, dtype=torch.bool)), dynamic_batch=(1, 2, 8))
    assert [repr(spec) for spec in fast.signature.inputs] == ["x: float32[batch, 4]", "more_0: bool[batch]"]
    assert [repr(spec) for spec in fast.signature.outputs] == ["output: float32[?, 3]"]
    assert (fast.backend, fast.precision) == ("network", "fp32")
    assert any("not compared" in note for note in fast.report.notes)


def test_a_dict_names_the_inputs_and_the_result_keeps_its_structure():
    def network(ctx, *, image, scale):
        product = ctx.network.add_elementwise(*ctx.broadcast(image, scale), ctx.trt.ElementWiseOperation.PROD)
        return {"scaled": product, "rest": (image, [product.get_output(0)]), "note": "text"}

    fast = build(network, {"image": torch.randn(2, 3), "scale": torch.randn(3)})
    assert [spec.name for spec in fast.signature.inputs] == ["image", "scale"]
    assert [spec.name for spec in fast.signature.outputs] == ["scaled", "rest.0", "rest.1.0"]
    outputs = [torch.full((2, 3), float(i)) for i in range(3)]
    result = fast.signature.assemble(outputs, [], [])
    assert result == {"scaled": outputs[0], "rest": (outputs[1], [outputs[2]]), "note": "text"}


def test_a_saved_one_is_a_module_like_any_other(tmp_path):
    fast = build(project, torch.randn(2, 4))
    fast.save(tmp_path / "fast.safetensors")
    loaded = ttb.load(tmp_path / "fast.safetensors")
    assert loaded.signature == fast.signature and loaded.backend == "network"
    again = ttb.TRTModule()
    again.load_state_dict(fast.state_dict())
    assert torch.equal(again.state_dict()["engine"], fast.state_dict()["engine"])


def test_the_precision_is_what_the_layers_compute_in():
    def network(ctx, x):
        return ctx.cast(project(ctx, x).get_output(0), torch.bfloat16)

    fast = build(network, torch.randn(2, 4))
    assert fast.precision == "bf16" and fast.signature.outputs[0].dtype == "bfloat16"


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda ctx, x: ctx.nonsense, "AttributeError: 'ConversionContext' object has no attribute 'nonsense'"),
        (lambda ctx, x: 3, "the result is 3, without a tensor"),
        (lambda ctx, x: {"a": WEIGHT}, "the result 'a' is a Tensor, not a tensor of TensorRT's network"),
        (lambda ctx, x: ctx.network.add_topk(x, ctx.trt.TopKOperation.MAX, 1, 2), "with 2 results"),
        (lambda ctx, x: ctx.constant(1.0, torch.float64), "TensorRT has no float64"),
    ],
)
def test_a_mistake_is_told_by_name(network, says):
    with pytest.raises(ConverterFailed, match=says):
        build(network, torch.randn(2, 4))


def test_a_layer_that_tensorrt_refuses_is_told_with_its_words():
    def network(ctx, x):
        return ctx.network.add_elementwise(x, ctx.constant([1.0, 2.0]), ctx.trt.ElementWiseOperation.SUM)

    with pytest.raises(ConverterFailed, match=r"network .*no possible shape(.|\n)*nbDims"):
        build(network, torch.randn(3, 4))


@pytest.mark.parametrize(
    ("inputs", "options", "error", "says"),
    [
        ((torch.ones(1), torch.ones(1)), {}, InvalidInput, "called with ctx and 2 tensors"),
        ((), {}, InvalidInput, "give a tensor, a tuple"),
        ((1,), {}, InvalidInput, "'x' is a int"),
        ({"a.b": torch.ones(1)}, {}, InvalidInput, "must be an identifier"),
        (torch.ones(1, dtype=torch.float64), {}, InvalidInput, "no float64 inputs"),
        (torch.ones(2, 4), {"device": "cpu"}, InvalidOption, "runs on a GPU"),
        (torch.ones(2, 4), {"options": ttb.BuildOptions(torch_tensorrt={"a": 1})}, InvalidOption, "torch_tensorrt"),
    ],
)
def test_bad_input_is_refused(inputs, options, error, says):
    with pytest.raises(error, match=says):
        ttb.from_network(project, inputs, **options)


@pytest.mark.parametrize(
    ("value", "dtype", "made"),
    [
        (1.5, None, "float32"),
        ([1, 2], None, "int64"),
        (np.zeros((2, 3), np.float16), None, "float16"),
        (torch.ones(2, 1).bool(), None, "bool"),
        (torch.arange(6.0).reshape(2, 3).t(), None, "float32"),
        ([1, 2], torch.bfloat16, "bfloat16"),
        (torch.tensor(3.0, dtype=torch.float64), torch.float16, "float16"),
    ],
)
def test_constants_have_the_value_the_dtype_and_the_shape(ctx, value, dtype, made):
    constant = ctx.constant(value, dtype)
    assert ctx.name_of(constant.dtype) == made and tuple(constant.shape) == tuple(torch.as_tensor(value).shape)
    assert torch.equal(ctx.weights(constant), torch.as_tensor(value).to(getattr(torch, made)))


def test_weights_are_those_of_any_constant_of_the_network(ctx):
    array = np.arange(6, dtype=np.float16)
    constant = ctx.network.add_constant((2, 3), array).get_output(0)
    assert torch.equal(ctx.weights(constant), torch.arange(6.0).half().reshape(2, 3))
    x = ctx.network.add_input("x", ctx.trt.float32, (-1, 4))
    assert ctx.is_constant(constant) and not ctx.is_constant(x)
    with pytest.raises(ValueError, match="'x' is no constant"):
        ctx.weights(x)


def test_sizes_are_ints_where_they_are_known(ctx):
    x = ctx.network.add_input("x", ctx.trt.float32, (-1, 4, -1))
    assert ctx.size(x, 1) == ctx.size(x, -2) == 4
    assert tuple(ctx.size(x, 0).shape) == (1,) and tuple(ctx.shape(x).shape) == (3,)
    assert tuple(ctx.reshape(x, [-1, 2]).shape) == (-1, 2)
    assert tuple(ctx.reshape(x, [ctx.size(x, 0), 2, 2, ctx.size(x, 2)]).shape) == (-1, 2, 2, -1)
    y, z = ctx.broadcast(x, ctx.network.add_input("y", ctx.trt.float32, (-1,)))
    assert y == x and tuple(z.shape) == (1, 1, -1)


def test_layers_are_named_after_their_place(ctx):
    x = ctx.network.add_input("x", ctx.trt.float32, (2,))
    for _ in range(2):
        with ctx.scope("encoder.layer.3", "mylib::norm"):
            assert (ctx.place, ctx.name) == ("encoder.layer.3", "mylib::norm")
            ctx.network.add_identity(ctx.network.add_identity(x).get_output(0))
            ctx.network.add_shape(x).name = "sizes"
    names = [ctx.network.get_layer(i).name for i in range(ctx.network.num_layers)]
    once = ["identity", "identity.1", "sizes"]
    assert names == [f"encoder.layer.3/{scope}.{name}" for scope in ("norm", "norm.1") for name in once]
    assert ctx.place == ""
