"""Converters' ONNX forms: their operators in the model, under the user's module's name; their failures by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import pytest
import torch
from onnxscript import opset18 as op
from torch import Tensor, nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import ConverterFailed


@torch.library.custom_op("onnx_forms_tests::halves", mutates_args=())
def halves(x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    first, second = (x * scale).chunk(2, -1)
    return first.clone(), second.clone()


@halves.register_fake
def _(x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    half = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    return half, torch.empty_like(half)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.ops.onnx_forms_tests.halves(x, 2.0)
        return first - second


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.halves = nn.Linear(4, 6), Halves()

    def forward(self, x: Tensor) -> Tensor:
        return self.halves(self.linear(x))


@pytest.fixture(autouse=True)
def _own_converters() -> Iterator[None]:
    with ttb.converter.scope():
        yield


def split(x: Any, scale: float) -> Any:
    return op.Split(op.Mul(x, op.CastLike(scale, x)), num_outputs=2, axis=-1)


@pytest.mark.filterwarnings("ignore::torchtrt_bridge.errors.RunsOnCPU")
def test_an_onnx_form_is_what_the_model_holds(tmp_path: Any) -> None:
    ttb.converter("onnx_forms_tests::halves").onnx(split)
    model, x = Model().eval(), torch.randn(3, 4)
    fast = ttb.compile(model, x, backend="onnx", dynamic_batch=(1, 3, 8), hybrid=False)
    for batch in (1, 8):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(fast(x), model(x))
    fast.save_onnx(tmp_path / "model.onnx")
    nodes = {node.op_type: node.name for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert nodes["Split"].startswith("halves/halves_")


def test_an_onnx_form_is_part_of_a_plan_in_16_bits() -> None:
    ttb.converter("onnx_forms_tests::halves").onnx(split)
    built = ttb.build(Model().eval(), torch.randn(3, 4), "fp16", backend="onnx", hybrid=False)
    assert built.report.runtime == "tensorrt"


def only_one(x: Any, scale: float) -> Any:
    return op.Identity(x)


def raises(x: Any, scale: float) -> Any:
    raise RuntimeError("no such thing")


@pytest.mark.parametrize(("form", "message"), [(only_one, "2"), (raises, "raised RuntimeError.*no such thing")])
def test_what_an_onnx_form_does_wrong_is_named(form: Any, message: str) -> None:
    ttb.converter("onnx_forms_tests::halves").onnx(form)
    with pytest.raises(ConverterFailed, match=rf"onnx_forms_tests::halves in halves \(.*{form.__name__}, .*{message}"):
        ttb.compile(Model().eval(), torch.randn(3, 4), backend="onnx", hybrid=False)
