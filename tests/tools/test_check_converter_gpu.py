"""check_converter() on a GPU: every form is run by every route, and what is wrong in TensorRT's layers is seen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb

sys.path.insert(0, str(Path(__file__).parents[1]))
from own_layers import rms, rms_converter  # noqa: E402

pytestmark = pytest.mark.gpu


def sample() -> tuple[Any, ...]:
    return torch.randn(4, 16), nn.Parameter(torch.rand(16) + 0.5), 1e-5


def test_each_form_agrees_by_each_route_in_every_precision() -> None:
    check = ttb.check_converter(rms_converter, [sample()])
    check.raise_if_failed()
    ran = {(t.form, t.route, t.precision, t.shapes) for t in check.trials if t.outcome == "agrees"}
    for form in ("aten", "tensorrt"):
        for precision in ("fp32", "fp16", "bf16"):
            for shapes in ("fixed", "batch 1 to 8"):
                assert (form, "onnx", precision, shapes) in ran
    assert not [trial for trial in check.trials if trial.outcome == "built"]
    routes = {trial.route for trial in check.trials if trial.outcome == "agrees"}
    skipped = {trial.route: trial.reason for trial in check.trials if trial.route not in routes}
    assert all("torch" in reason for reason in skipped.values())  # a package that is not here


@pytest.mark.parametrize("mistake", ["values", "dtype", "shape", "number", "raises"])
def test_a_mistake_in_the_layers_is_a_row_and_the_process_lives(mistake: str) -> None:
    made = ttb.converter("own_layers::rms", register=False)
    made(rms)

    @made.tensorrt
    def layers(ctx: Any, x: Any, weight: Any, eps: float) -> Any:
        if mistake == "raises":
            raise KeyError("no such weight")
        product = ctx.network.add_elementwise(*ctx.broadcast(x, weight), ctx.trt.ElementWiseOperation.PROD)
        tensor = product.get_output(0)
        if mistake == "dtype":
            return ctx.cast(tensor, torch.float16)
        if mistake == "shape":
            return ctx.reshape(tensor, [16, 4])
        return [tensor, tensor] if mistake == "number" else tensor

    options: dict[str, Any] = {"precisions": ["fp32"], "dynamic_batch": False, "routes": ["onnx"]}
    check = ttb.check_converter(made, [sample()], **options)
    failures = [(trial.form, trial.outcome) for trial in check.failures]
    assert failures == [("tensorrt", "differs" if mistake == "values" else "failed")]
    assert "own_layers::rms" in (check.failures[0].reason if mistake != "values" else repr(check))
    right = ttb.check_converter(made, [sample()], forms=["aten"], **options)
    assert [trial.outcome for trial in right.trials] == ["agrees"]
