"""The ONNX route: names that survive, operators that TensorRT fuses, and refusals that name the user's module."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from comparing import assert_same, nothing_changes
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.backends import onnx as route
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import BuildFailed, ConversionFailed

pytest.importorskip("tensorrt_rtx")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.query = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        q = self.query(self.norm(x)).unflatten(-1, (2, 8)).transpose(1, 2)
        x = x + nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
        return x + self.down(nn.functional.gelu(self.up(x)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Wrapped(nn.Module):
    """One operator, deep inside."""

    def __init__(self, function):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.decoder = nn.Sequential(nn.ReLU(), _Function(function))

    def forward(self, x):
        return self.decoder(self.stem(x))


class _Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return Transformer().eval()


@pytest.fixture(scope="module")
def fast(transformer):
    return ttb.compile(transformer, torch.randn(2, 5, 16), dynamic_batch=(1, 2, 4))


@pytest.fixture(scope="module")
def saved(fast, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "transformer.onnx"
    fast.save_onnx(path)
    return onnx.load(path)


def test_nodes_are_named_after_the_users_modules(saved):
    names = {node.name for node in saved.graph.node}
    assert len(names) == len(saved.graph.node)
    for expected in ("layers.0.norm/layer_norm", "layers.0.query/linear", "layers.1.down/linear_5", "layers.1/gelu_1"):
        assert expected in names
    assert all("/" in name and not name.startswith("model") for name in names)


def test_the_file_says_nothing_of_the_machine_that_made_it(saved):
    graph = saved.graph
    for item in (saved, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        assert not item.metadata_props and not item.doc_string
    assert b"test_onnx" not in saved.SerializeToString()


def test_attention_and_gelu_stay_whole(saved):
    operators = [node.op_type for node in saved.graph.node]
    assert saved.opset_import[0].version == 23
    assert operators.count("Attention") == 2 and operators.count("Gelu") == 2


def test_inputs_results_and_dims_carry_the_users_names(saved):
    (x,), (y,) = saved.graph.input, saved.graph.output
    assert (x.name, [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim][1:]) == ("x", [5, 16])
    assert y.name == "output"
    onnx.checker.check_model(saved, full_check=True)


def test_the_file_computes_what_the_model_does(saved, transformer):
    import onnxruntime

    x = torch.randn(3, 5, 16)
    session = onnxruntime.InferenceSession(saved.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": x.numpy()})
    assert_same(torch.from_numpy(result), transformer(x).detach())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_low_precision_is_written_into_the_file(transformer, precision, tmp_path):
    ttb.compile(transformer, torch.randn(2, 5, 16), precision).save_onnx(tmp_path / "low.onnx")
    model = onnx.load(tmp_path / "low.onnx")
    low = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    weights = {w.data_type for w in model.graph.initializer if len(w.dims) == 2}
    assert weights == {low}
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {onnx.TensorProto.FLOAT}


def test_no_result_is_the_identity_of_another(tmp_path):
    class Repeats(nn.Module):
        def forward(self, x):
            h = torch.relu(x)
            return h, h.clone(), h[..., None], h[..., None], {"first": h * 2}

    model, x = Repeats().eval(), torch.randn(3, 4)
    fast = ttb.compile(model, x, dynamic_batch=(1, 3, 8))
    x = torch.randn(5, 4)
    assert_same(fast(x), model(x))
    fast.save_onnx(tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    results = {value.name for value in graph.output}
    copied = [node.input[0] for node in graph.node if node.op_type == "Identity" and node.output[0] in results]
    assert len(results) == 5 and copied and not results & set(copied)
    ttb.build(model, x, "fp16", dynamic_batch=(1, 5, 8), backend="onnx")


def test_a_result_named_as_an_input_gets_a_name_of_its_own(tmp_path):
    class Same(nn.Module):
        def forward(self, x, y):
            return {"x": x + y, "y": x - y, "x_out": x * y}

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    fast = ttb.compile(Same().eval(), (x, y))
    assert_same(fast(y, x), {"x": x + y, "y": y - x, "x_out": x * y})
    fast.save_onnx(tmp_path / "same.onnx")
    names = [value.name for value in onnx.load(tmp_path / "same.onnx").graph.output]
    assert len({*names, "x", "y"}) == 5


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: torch.polygamma(1, x), "aten.polygamma.default"),
        (lambda x: torch.linalg.solve(x + 9 * torch.eye(4), x), "aten._linalg_solve_ex.default"),
        (torch.digamma, "prims.digamma.default"),
    ],
    ids=["as written", "a composite", "after decomposition"],
)
def test_an_operator_without_an_onnx_form_is_named_with_the_users_module(function, operator):
    model, x = Wrapped(function).eval(), torch.randn(4, 4)
    with nothing_changes(model, x), pytest.raises(ConversionFailed) as error:
        ttb.build(model, x, backend="onnx", hybrid=False)
    message = str(error.value)
    assert f"cannot convert {operator} (in decoder.1)" in message and "\x1b" not in message and "\n" not in message


def test_an_operator_that_the_parser_refuses_is_named_with_its_node_and_the_users_module():
    model, x = Wrapped(torch.linalg.det).eval(), torch.randn(4, 4)
    with nothing_changes(model, x), pytest.raises(BuildFailed, match=r"decoder\.1/linalg_det \[Det\]"):
        ttb.build(model, x, backend="onnx", hybrid=False)
    assert_same(ttb.compile(model, x)(x), model(x).detach())


def test_a_dtype_that_tensorrt_lacks_is_named_before_anything_is_built():
    model = nn.Linear(4, 2).double().eval()
    with pytest.raises(ConversionFailed, match=r"input: float64\[2, 4\]: TensorRT has no float64 inputs or results"):
        ttb.build(model, torch.randn(2, 4, dtype=torch.float64), backend="onnx", hybrid=False)


def test_an_opset_that_does_not_build_gives_way_to_an_older_one(transformer, monkeypatch):
    import torchtrt_bridge.trt.build as trt_build

    models = []
    real = trt_build.build

    def first_fails(request, **options):
        models.append(onnx.ModelProto.FromString(request.model))
        if len(models) == 1:
            raise BuildFailed("Attention has no kernel here")
        return real(request, **options)

    monkeypatch.setattr(trt_build, "build", first_fails)
    module = ttb.build(transformer, torch.randn(2, 5, 16), hybrid=False)
    assert [model.opset_import[0].version for model in models] == [23, 18]
    assert [any(n.op_type == "Attention" for n in model.graph.node) for model in models] == [True, False]
    assert module.provenance["opset"] == 18
    assert "opset 18 is in use" in repr(module.report) and "Attention has no kernel here" in repr(module.report)


def test_if_no_opset_builds_the_newest_ones_error_is_raised(transformer, monkeypatch):
    import torchtrt_bridge.trt.build as trt_build

    reasons = iter(["the first reason", "the second reason"])

    def fails(request, **options):
        raise BuildFailed(next(reasons))

    monkeypatch.setattr(trt_build, "build", fails)
    with pytest.raises(BuildFailed, match="the first reason"):
        ttb.build(transformer, torch.randn(2, 5, 16), backend="onnx", hybrid=False)


# -- real plans --------------------------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """Convolutions with batch normalization, and the activations that TensorRT lacks in bf16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.gate = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Hardsigmoid())
        self.head = nn.Linear(8, 5)
        for norm in (self.stem[1], self.gate[1]):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x * self.gate(x)).mean((2, 3)))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_convolution_and_batch_norm_build_and_compute_in_every_precision(precision):
    model, x = ConvNet().eval(), torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(model)
    plan = ttb.build(model, x, precision, dynamic_batch=(1, 2, 4))
    assert plan.provenance["layers"] > 0 and plan.precision == precision
    assert "BatchNorm" not in str(plan.report.kept_fp32)
    fast = ttb.compile(model, x, precision, dynamic_batch=(1, 2, 4))
    other = torch.randn(4, 3, 8, 8)
    limit = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}[precision]
    assert_same(fast(other), before(other).detach(), rtol=limit, atol=limit)


def test_the_profile_is_the_ranges_of_the_inputs(transformer):
    said = {"x": {0: ttb.Dim(0, 2, 4), 1: ttb.Dim(3, 5, 7)}}
    signature = capture(transformer, torch.randn(2, 5, 16), dynamic_shapes=said).signature
    assert route.profile(signature) == {"x": ((1, 3, 16), (2, 5, 16), (4, 7, 16))}
