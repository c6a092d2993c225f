"""Which route makes the module, and what the report says of those that do not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from comparing import assert_same
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge import errors, selection
from torchtrt_bridge.backends.base import Support
from torchtrt_bridge.backends.onnx import OnnxBackend

X = torch.randn(3, 8)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)).eval()


class Route(OnnxBackend):
    """The ONNX route under another name, which may go wrong on the way."""

    def __init__(self, name, error=None, support=None, scale=1.0):
        self.name, self.error, self.support, self.scale = name, error, support, scale
        self.calls = 0

    def supports(self, captured, place):
        return self.support or super().supports(captured, place)

    def convert(self, captured, precision, build, place, progress):
        self.calls += 1
        if self.error is not None:
            raise self.error
        if self.scale != 1.0:  # another model than the one asked for
            with torch.no_grad():
                other = nn.Sequential(*[nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)]).eval()
            from torchtrt_bridge.capture import capture

            captured = dataclasses.replace(captured, program=capture(other, X).program)
        return super().convert(captured, precision, build, place, progress)


@pytest.fixture
def routes(monkeypatch):
    def use(*routes):
        monkeypatch.setattr(selection, "BACKENDS", routes)

    return use


def test_the_first_route_that_converts_and_verifies_wins_and_the_report_says_what_became_of_each(model, routes):
    last = Route("last")
    routes(
        Route("absent", support=Support("absent", False, ("absent is not installed",), missing=True)),
        Route("broken", errors.UnsupportedLayer("broken has no converter for aten.gelu (in 1)")),
        Route("crashing", errors.BuildCrashed("The build process was ended by SIGSEGV before the plan was there.")),
        Route("faulty", ZeroDivisionError("a bug of its own")),
        Route("wrong", scale=2.0),
        Route("good"),
        last,
    )
    fast = ttb.compile(model, X)
    assert_same(fast(X), model(X))
    found = {row["route"]: (row["outcome"], row["reason"]) for row in fast.report.routes}
    assert list(found) == ["absent", "broken", "crashing", "faulty", "wrong", "good", "last"]
    outcomes = [outcome for outcome, _ in found.values()]
    assert outcomes == ["impossible", "failed", "failed", "failed", "wrong", "chosen", "not tried"]
    assert "aten.gelu (in 1)" in found["broken"][1] and "SIGSEGV" in found["crashing"][1]
    assert "ZeroDivisionError: a bug of its own" in found["faulty"][1]
    assert "relative L2" in found["wrong"][1] and "good comes before it" in found["last"][1]
    assert not last.calls and fast.backend == "good"
    for text in (repr(fast.report), fast.report._repr_html_()):
        assert "broken: failed: broken has no converter for aten.gelu (in 1)" in text and "good: chosen" in text
    again = ttb.TRTModule()
    again.load_state_dict(fast.state_dict())
    assert again.report.routes == fast.report.routes


@pytest.mark.parametrize(
    "kinds, expected",
    [
        ([errors.UnsupportedLayer, errors.UnsupportedLayer], errors.UnsupportedLayer),
        ([errors.UnsupportedLayer, errors.ConversionFailed], errors.ConversionFailed),
        ([errors.BuildCrashed, errors.BuildFailed], errors.BuildFailed),
        ([errors.VerificationFailed, errors.VerificationFailed], errors.VerificationFailed),
        ([errors.VerificationFailed, errors.BuildFailed], errors.ConversionFailed),
        ([errors.InvalidOption, errors.InvalidOption], errors.InvalidOption),
    ],
)
def test_where_all_fail_one_exception_has_every_reason(model, routes, kinds, expected):
    routes(*(Route(f"route{i}", kind(f"reason {i}\nin two lines")) for i, kind in enumerate(kinds)))
    with pytest.raises(errors.BridgeError) as caught:
        ttb.compile(model, X, hybrid=False)
    assert type(caught.value) is expected
    assert "route0: reason 0\n    in two lines" in str(caught.value) and "route1: reason 1" in str(caught.value)


def test_the_only_routes_own_error_comes_as_it_is(model, routes):
    error = errors.BuildFailed("no kernel")
    routes(Route("one", error), Route("two"))
    with pytest.raises(errors.BuildFailed) as caught:
        ttb.compile(model, X, backend="one", hybrid=False)
    assert caught.value is error


def test_a_route_that_cannot_says_so_by_its_own_name(model, routes):
    routes(
        Route("one", support=Support("one", False, ("it takes no models on Tuesdays",))),
        Route("two", support=Support("two", False, ("two is not installed",), missing=True)),
    )
    with pytest.raises(errors.ConversionFailed, match="The route 'one' cannot compile the model: it takes no models"):
        ttb.compile(model, X, backend="one", hybrid=False)
    with pytest.raises(errors.BackendUnavailable, match="The route 'two' cannot .*two is not installed"):
        ttb.compile(model, X, backend="two")
    with pytest.raises(errors.ConversionFailed, match="(?s)one: it takes no .*two: two is not"):
        ttb.compile(model, X, hybrid=False)


@pytest.mark.parametrize("name, near", [("onx", "'onnx'"), ("fast", "'fastest'"), ("atuo", "'auto'")])
def test_a_route_by_a_wrong_name(model, name, near):
    with pytest.raises(errors.InvalidOption, match=f"backend='{name}': there is 'auto', .*Did you mean {near}"):
        ttb.compile(model, X, backend=name)


@pytest.mark.parametrize("name", [None, 3, ("onnx",), ""])
def test_a_route_that_is_no_name(model, name):
    with pytest.raises(errors.InvalidOption, match="there is 'auto'"):
        ttb.compile(model, X, backend=name)


def test_cuda_graphs_need_a_gpu(model):
    with pytest.raises(errors.InvalidOption, match="runs on the CPU, where there are no CUDA graphs"):
        ttb.compile(model, X, cuda_graph=True)
    assert ttb.compile(model, X).report.cuda_graph == "off"


@pytest.mark.parametrize("value", ["on", 1, None, "True"])
def test_cuda_graph_has_three_values(model, value):
    with pytest.raises(errors.InvalidOption, match="cuda_graph=.*'auto', True or False"):
        ttb.compile(model, X, cuda_graph=value)
    with pytest.raises(errors.InvalidOption, match="max_graphs"):
        ttb.TRTModule(max_graphs=0)


def test_an_option_that_the_chosen_route_does_not_have(model, routes):
    routes(Route("onnx"), Route("torch_tensorrt"))
    build = ttb.BuildOptions(torch_tensorrt={"decompose_attention": True})
    with pytest.raises(errors.InvalidOption, match="settings of the route 'torch_tensorrt'; with backend='onnx'"):
        ttb.compile(model, X, backend="onnx", build=build)
    fast = ttb.compile(model, X, build=build)  # the route that has it
    assert [row["outcome"] for row in fast.report.routes] == ["failed", "chosen"]
    assert fast.backend == "torch_tensorrt"
