"""A model with a custom layer, from registration to a module in another process, by each route."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchtrt_bridge as ttb

pytestmark = pytest.mark.filterwarnings("ignore::torchtrt_bridge.errors.RunsOnCPU")


@torch.library.custom_op("custom_layers_tests::norm", mutates_args=())
def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def spelled(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.custom_layers_tests.norm(x, self.weight, 0.1)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), Norm(), nn.Linear(8, 4)).eval()


def slope(x: Tensor) -> Tensor:
    return x * 0.25


class Sloping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return slope(x) + 1


X = torch.randn(3, 4)


def require(backend: str) -> None:
    """Skip where the route's package is not there (this process must not import it)."""
    if backend == "torch_tensorrt" and importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")


@pytest.fixture(autouse=True)
def _own_converters() -> Iterator[None]:
    with ttb.converter.scope():
        yield


@pytest.mark.parametrize(
    ("backend", "precision", "hybrid"),
    [("onnx", "fp32", False), ("onnx", "fp16", True), ("torch_tensorrt", "fp16", False)],
)
def test_with_an_aten_form_alone_every_route_takes_it(backend: str, precision: str, hybrid: bool) -> None:
    ttb.converter("custom_layers_tests::norm")(spelled)
    require(backend)
    net = model()
    fast = ttb.compile(net, X, precision, backend=backend, hybrid=hybrid, dynamic_batch=(1, 3, 8))
    for batch in (1, 8):
        x = torch.randn(batch, 4)
        tolerance = 1e-5 if precision == "fp32" else 5e-3
        torch.testing.assert_close(fast(x), net(x), rtol=tolerance, atol=tolerance)
    assert any("custom_layers_tests::norm: 1 call converted by" in note for note in fast.report.notes)
    if hybrid:
        assert fast.report.hybrid["outside"] == 0


@pytest.mark.parametrize("backend", ["onnx", "torch_tensorrt"])
def test_with_an_aten_form_alone_a_plan_is_built(backend: str) -> None:
    ttb.converter("custom_layers_tests::norm")(spelled)
    require(backend)
    built = ttb.build(model(), X, "fp16", backend=backend, hybrid=False)
    assert built.report.runtime == "tensorrt"


def test_without_any_form_the_layer_is_a_segment_that_pytorch_runs() -> None:
    net = model()
    fast = ttb.compile(net, X)
    torch.testing.assert_close(fast(X), net(X))
    ((layer,),) = (fast.report.hybrid["layers"],)
    assert (layer["operator"], layer["place"], layer["count"]) == ("custom_layers_tests.norm", "1", 1)
    assert [segment["tensorrt"] for segment in fast.report.hybrid["segments"]] == [True, False, True]


def test_a_saved_module_needs_no_converter_and_no_operator(tmp_path: Path) -> None:
    ttb.converter("custom_layers_tests::norm")(spelled)
    net = model()
    ttb.compile(net, X, "fp16").save(tmp_path / "fp16")
    ttb.compile(net, X, source=True).save(tmp_path / "source")
    torch.save((X, net(X)), tmp_path / "expected")
    program = """
        import sys, torch, torchtrt_bridge as ttb
        folder = sys.argv[1]
        x, expected = torch.load(f"{folder}/expected")
        assert not any("custom_layers_tests" in name for name in torch._C._dispatch_get_all_op_names())
        for name in ("fp16", "source"):
            torch.testing.assert_close(ttb.load(f"{folder}/{name}")(x), expected, rtol=5e-3, atol=5e-3)
        torch.testing.assert_close(ttb.load(f"{folder}/source").rebuild(device="cpu")(x), expected)
        print("the same")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "the same" in run.stdout


def test_an_exported_program_from_a_file_has_its_operators_converted(tmp_path: Path) -> None:
    net = model()
    torch.export.save(torch.export.export(net, (X,)), tmp_path / "model.pt2")
    given = ttb.converter("custom_layers_tests::norm", register=False)(spelled)
    fast = ttb.compile_file(tmp_path / "model.pt2", device="cpu", converters=[given])
    torch.testing.assert_close(fast(X), net(X))
    assert not fast.report.hybrid and any("1 call converted by" in note for note in fast.report.notes)
    fast.save(tmp_path / "saved")
    with pytest.raises(ttb.errors.InvalidOption, match="converters"):
        ttb.compile_file(tmp_path / "saved", device="cpu", converters=[given])


def test_converters_for_one_call_are_for_that_call() -> None:
    given = ttb.converter(slope, register=False)(lambda x: x / 4)
    explained = ttb.explain(Sloping().eval(), X, converters=[given])
    assert f"{__name__}.slope in the top module: the converter's ATen form" in explained.routes[0].converters
    fast = ttb.compile(Sloping().eval(), X, converters=given)
    assert any(f"{__name__}.slope" in note for note in fast.report.notes)
    assert not any("converted" in note for note in ttb.compile(Sloping().eval(), X).report.notes)


def test_a_registration_in_another_thread_changes_nothing_in_flight() -> None:
    """While a model is captured, another thread takes the converter away, puts another there, and keeps what stands in
    the place of the function that it is for."""
    inside, go_on = threading.Event(), threading.Event()
    seen: list[Any] = []
    registry = type(ttb.converter)()

    def asked(call: ttb.Call) -> bool:
        inside.set()
        return go_on.wait(60)

    def meddle() -> None:
        assert inside.wait(60)
        registry.remove(registered)
        meanwhile = slope  # as a module that is imported now would have it
        replaced = registry(meanwhile)(lambda x: x * 100)
        seen.extend([meanwhile, replaced.registration.target.object, meanwhile(torch.tensor(4.0))])
        go_on.set()

    registered = registry(slope, when=asked)(lambda x: x / 4)
    thread = threading.Thread(target=meddle)
    thread.start()
    net = Sloping().eval()
    fast = ttb.compile(net, X, converters=[registered])
    thread.join()
    torch.testing.assert_close(fast(X), net(X))
    assert any("converted by" in note for note in fast.report.notes)
    meanwhile, target, result = seen
    assert meanwhile is not slope and target is slope
    assert result == meanwhile(torch.tensor(4.0)) == 1.0
