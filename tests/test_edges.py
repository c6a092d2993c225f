"""What PyTorch does at the edges of an engine: dtypes that TensorRT lacks, sizes that depend on the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parts import Call

import torchtrt_bridge as ttb
from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.backends.onnx import OnnxBackend
from torchtrt_bridge.capture import capture
from torchtrt_bridge.edges import Edges, elsewhere
from torchtrt_bridge.errors import ConversionFailed
from torchtrt_bridge.lowering import lower
from torchtrt_bridge.options import BuildOptions
from torchtrt_bridge.precision import Precision
from torchtrt_bridge.runtime.module import TRTModule

SHORT = torch.tensor([-32768, 32767, 5], dtype=torch.int16)
PLAN = Place(torch.device("cpu"), "portable")


def with_edges(function: Callable[..., Any], *inputs: torch.Tensor, dynamic: bool = False) -> TRTModule | None:
    """The module with its edges as for TensorRT, in whose place ONNX Runtime is; None where there are no edges."""
    dim = ttb.Dim(1, inputs[0].shape[0], 40, "n")
    shapes = {f"args.{i}": {0: dim} for i in range(len(inputs))} if dynamic else None
    captured = capture(Call(function).eval(), inputs, dynamic_shapes=shapes)
    edges = Edges.of(captured, PLAN)
    if edges is None:
        return None
    engine = OnnxBackend().convert(
        edges.inner, Precision.parse("fp32"), BuildOptions(), Place(torch.device("cpu")), lambda *_: None
    )
    return TRTModule("cpu", _artifact=edges.around(engine))


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


CASES: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "int16 and float64": (lambda x, y: ((x.float() / 3).double(), y.float().short()), (SHORT, SHORT.double())),
    "places by dims": (lambda x: torch.where(x > 0), (torch.randn(3, 4, 2),)),
    "masks, then more": (lambda x, s: (x[s > 0.5].half() * 2, s[s < 0.6]), (torch.randn(7, 4), torch.rand(7))),
    "slices that differ": (
        lambda x: torch.unique_consecutive(x, return_inverse=True, return_counts=True, dim=0),
        (torch.tensor([[0, 1], [0, 1], [0, 2], [1, 2]]),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_eagers(name: str) -> None:
    function, inputs = CASES[name]
    module = with_edges(function, *inputs, dynamic=True)
    assert module is not None
    other = tuple(torch.cat([x, x.flip(0)]) for x in inputs)
    for tensors in (inputs, other):
        assert_same(module(*tensors), function(*tensors))
    loaded = TRTModule()
    loaded.load_state_dict(module.state_dict())
    assert_same(loaded(*inputs), function(*inputs))


def test_nothing_is_selected_and_all_is() -> None:
    module = with_edges(lambda x: x[x[:, 0] > 0], torch.randn(4, 3))
    assert module is not None
    for x in (torch.full((4, 3), -1.0), torch.ones(4, 3)):
        assert_same(module(x), x[x[:, 0] > 0])


def test_one_engine_computes_and_the_report_names_the_rest() -> None:
    module = with_edges(lambda x: (x * 3).double(), torch.randn(3))
    assert module is not None
    assert [segment.runtime for segment in module.made.segments] == ["onnxruntime", "torch"]
    assert "_to_copy" in module.made.report["notes"][-1]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2,  # nothing at the edges
        lambda x: x.double() * 3,  # more than a cast
        lambda x: x[x > 0].sum(),  # more than rows
        lambda x: torch.bincount((x > 0).long()),  # a size without bounds
    ],
)
def test_what_is_no_edge_is_left_alone(function: Callable[..., Any]) -> None:
    assert with_edges(function, torch.randn(5)) is None


def test_on_the_cpu_there_are_none() -> None:
    captured = capture(Call(torch.nonzero).eval(), torch.randn(3))
    assert Edges.of(captured, Place(torch.device("cpu"))) is None


def test_a_plan_is_built_whole() -> None:
    module = ttb.build(Call(lambda x: (x.float() * 2 > 0).nonzero()).eval(), torch.ones(3, 4).short(), hybrid=False)
    assert module.report.runtime == "torch+tensorrt" and module.report.backend == "onnx"


def test_explain_sees_no_obstacle_in_an_edge() -> None:
    found = ttb.explain(Call(lambda x: (x * 2).double()).eval(), torch.randn(3), target="portable")
    assert found.routes[0].takes and not found.routes[0].reasons


def test_a_converters_own_form_stays_inside() -> None:
    @torch.library.custom_op("bridge_tests::half_of", mutates_args=())
    def half_of(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    half_of.register_fake(torch.empty_like)
    form = ttb.converter("bridge_tests::half_of")(lambda x: x / 2)
    form.onnx(lambda x: x)
    try:
        snapshot = ttb.converter.snapshot()
    finally:
        ttb.converter.remove(form)
    model = Call(lambda x: torch.ops.bridge_tests.half_of(x).double()).eval()
    edges = Edges.of(lower(capture(model, torch.randn(3), converters=snapshot), snapshot), PLAN)
    assert edges is not None and edges.inner.formed is not None
    operators = {str(node.target) for node in edges.inner.formed.graph.nodes}
    assert operators & set(edges.inner.calls) and "aten._to_copy.default" not in operators


def test_what_computes_in_float64_is_refused() -> None:
    with pytest.raises(ConversionFailed, match="float64"):
        ttb.build(Call(lambda x: x.double().exp()).eval(), torch.randn(3), hybrid=False)


def test_a_result_on_another_device_is_named() -> None:
    captured = capture(Call(torch.exp).eval(), torch.randn(3))
    assert elsewhere(captured) == ()
    moved = dataclasses.replace(captured, device=torch.device("cuda", 0))
    assert "'exp' is computed on the device 'cpu'" in elsewhere(moved)[0]
