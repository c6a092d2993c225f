"""ttb.explain(): what stands in the way of each route, with its place in the model."""

from __future__ import annotations

import json

import pytest
import torch
from comparing import nothing_changes
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge import errors, selection
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.backends.onnx import OnnxBackend
from torchtrt_bridge.capture import capture


class Odd(nn.Module):
    """aten.special_i0 has no ONNX form; aten.linalg_svdvals is made of one that has none."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        y = self.linear(x)
        return torch.special.i0(y) + torch.special.i0(-y) + torch.linalg.svdvals(y).sum()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 8), nn.GELU())
        self.odd = Odd()

    def forward(self, x):
        return self.odd(self.stem(x)).tanh()


X = torch.randn(3, 8)


@pytest.fixture(autouse=True, scope="module")
def _the_onnx_route_alone():
    """Torch-TensorRT answers from a process of its own, which takes its time: one test asks it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "BACKENDS", (OnnxBackend(),))
        yield


@pytest.fixture(scope="module")
def found():
    return ttb.explain(Model().eval(), X)


def answer(found, name):
    return next(row for row in found.routes if row.route == name)


def test_the_layers_in_the_way_are_named_with_their_places(found):
    onnx = answer(found, "onnx")
    assert not onnx.takes
    layers = {layer.operator: layer for layer in onnx.layers}
    assert set(layers) == {"aten.special_i0", "aten.linalg_svdvals"}
    assert layers["aten.special_i0"].place == layers["aten.linalg_svdvals"].place == "odd"
    assert layers["aten.special_i0"].count == 2
    assert "aten._linalg_svd, which has no ONNX form" in layers["aten.linalg_svdvals"].reason
    assert onnx.taken == found.operations - 3 and 0.5 < found.share(onnx) < 1


def test_what_is_said_is_what_happens(found):
    captured, place = capture(Model().eval(), X), Place(torch.device("cpu"))
    with pytest.raises(errors.ConversionFailed, match="i0|svd"):
        OnnxBackend().convert(captured, ttb.Precision.parse("fp32"), ttb.BuildOptions(), place, lambda *_: None)


def test_a_model_without_obstacles():
    found = ttb.explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU()).eval(), torch.ones(1, 3, 8, 8))
    onnx = answer(found, "onnx")
    assert onnx.takes and onnx.taken == found.operations == 3 and not onnx.layers and found.share(onnx) == 1.0


@pytest.mark.slow
def test_every_route_has_a_row_in_order(monkeypatch):
    from torchtrt_bridge.backends.torch2trt import Torch2TrtBackend
    from torchtrt_bridge.backends.torch_tensorrt import TorchTensorRTBackend

    monkeypatch.setattr(selection, "BACKENDS", (OnnxBackend(), TorchTensorRTBackend(), Torch2TrtBackend()))
    found = ttb.explain(Model().eval(), X, target="portable")
    assert [row.route for row in found.routes] == ["onnx", "torch_tensorrt", "torch2trt"]
    _, torch_tensorrt, torch2trt = found.routes
    assert torch2trt.taken is None  # its converters are for the eager model
    if not torch_tensorrt.reasons:
        assert "aten.special_i0" in {layer.operator for layer in torch_tensorrt.layers}
        assert 0.5 < found.share(torch_tensorrt) < 1


def test_it_is_data_that_can_be_read(found):
    data = json.loads(json.dumps(found.to_dict()))
    assert data["routes"][0]["share"] == found.share(found.routes[0])
    assert data["routes"][0]["layers"][0]["place"] == "odd"
    for text in (repr(found), found._repr_html_()):
        assert "aten.special_i0 in odd (2 times): is made of" in text and f"{found.operations} operations" in text
    assert "<script>" not in ttb.Explanation("fp32", "<script>", 1, ())._repr_html_()


def test_nothing_of_the_models_changes():
    model = Model().eval()
    with nothing_changes(model, X):
        ttb.explain(model, X, "fp16")


def test_a_route_that_breaks_while_it_answers_is_a_row(monkeypatch):
    class Broken(OnnxBackend):
        name = "broken"

        def refusals(self, program, place):
            raise errors.BackendUnavailable("broken.so: cannot open shared object file")

    monkeypatch.setattr(selection, "BACKENDS", (Broken(), OnnxBackend()))
    found = ttb.explain(nn.Linear(8, 2).eval(), X)
    assert [row.takes for row in found.routes] == [False, True] and "cannot open" in found.routes[0].reasons[0]


class Found(nn.Module):
    def forward(self, x):
        return x.double().sum().float(), x[torch.nonzero(x > 0)[:, 0]].sum()


def test_on_tensorrt_for_rtx_sizes_cannot_depend_on_the_data_and_there_is_no_float64():
    pytest.importorskip("tensorrt_rtx")
    found = ttb.explain(Found().eval(), X, target="portable")
    reasons = {layer.operator: layer.reason for layer in answer(found, "onnx").layers}
    assert "depends on the data" in reasons["aten.nonzero"]
    assert any("float64, which TensorRT has not" in reason for reason in reasons.values())
    assert answer(ttb.explain(Found().eval(), X), "onnx").takes  # ONNX Runtime has both


def test_refusals_leave_the_program_alone():
    captured = capture(Model().eval(), X)
    before = str(captured.program)
    first = OnnxBackend().refusals(captured.program, Place(torch.device("cpu")))
    assert first and first == OnnxBackend().refusals(captured.program, Place(torch.device("cpu")))
    assert str(captured.program) == before
    assert set(first) <= {node.name for node in captured.program.graph.nodes}


def test_it_says_which_form_of_a_converter_a_route_takes_and_why_not_another() -> None:
    class Rates(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten.leaky_relu(x, 0.5) + torch.ops.aten.leaky_relu(x, 0.25).tanh()

    with ttb.converter.scope():
        half = ttb.converter("aten::leaky_relu", when=lambda call: call["slope"] == 0.5 or "only halves")

        @half.onnx
        def _(x, slope): ...

        only_tensorrt = ttb.converter("aten::tanh")
        only_tensorrt.tensorrt(lambda ctx, x: ...)
        found = ttb.explain(Rates().eval(), torch.randn(3, 4))
        onnx = answer(found, "onnx")
        assert onnx.takes and onnx.taken == onnx.operations == 4
        assert set(onnx.converters) == {
            "aten::leaky_relu in the top module: the converter's ONNX form",
            "aten::leaky_relu in the top module: not converted: only halves",
            "aten::tanh in the top module: as it is; no form serves this route",
        }
        assert all(line in repr(found) for line in onnx.converters)
