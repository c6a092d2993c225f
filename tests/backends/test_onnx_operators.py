"""The program that the ONNX model is made of: each call by itself in operators that TensorRT takes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from parts import Call
from torch import nn

from torchtrt_bridge.backends.base import Place
from torchtrt_bridge.backends.onnx_graph import to_onnx
from torchtrt_bridge.backends.onnx_operators import exportable
from torchtrt_bridge.backends.onnx_refusals import refusals
from torchtrt_bridge.capture import capture
from torchtrt_bridge.runtime.program import run_callable


def targets(program: Any) -> list[str]:
    return [str(node.target).removeprefix("aten.") for node in program.graph.nodes if node.op == "call_function"]


def test_calls_of_one_operator_are_decided_one_by_one() -> None:
    whole, floats = torch.arange(6).reshape(2, 3), torch.tensor([[0.5, -1.5, 2.0]])
    program = capture(
        Call(lambda i, x: (i.floor(), x.floor(), i.argmax(), x.argmax(-1))).eval(), (whole, floats)
    ).program
    found = exportable(program)
    assert targets(found).count("floor.default") == 1 and targets(found).count("argmax.default") == 2
    results = run_callable(found)([whole, floats])
    for actual, expected in zip(results, (whole, floats.floor(), whole.argmax(), floats.argmax(-1)), strict=True):
        assert torch.equal(actual, expected)
    assert targets(program).count("floor.default") == 2  # what was captured is as it was


def test_a_program_that_needs_nothing_is_itself() -> None:
    program = capture(nn.Linear(3, 2).eval(), torch.randn(1, 3)).program
    assert exportable(program) is program


def test_what_a_form_is_made_of_is_named_after_the_users_call() -> None:
    program = capture(Call(lambda x: torch.linalg.inv(torch.fmax(x, x))).eval(), torch.randn(20, 20)).program
    found = refusals(program, Place(torch.device("cpu")))
    assert list(found) == ["linalg_inv"] and "linalg_inv" in found["linalg_inv"]


def test_results_have_the_programs_dtypes() -> None:
    """torch.onnx computes these in float32."""
    program = capture(Call(lambda x: (x.abs(), x.sum(-1) + 1, x.amin())).eval(), torch.randn(2, 3).half()).program
    model = to_onnx(program, ["x"], ["a", "b", "c"], 18)
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [(n, ir.DataType.FLOAT16) for n in "abc"]
