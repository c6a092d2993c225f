"""A fixed tenth of the sweep of operators, and that the sweep itself sees what goes wrong.

``make sweep`` runs all; what came of it on a GPU is in ``docs/operators.md``.
"""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable
from typing import Any

import cases
import pytest
import run
import torch
import trial
from torch import nn

import torchtrt_bridge as ttb

PLANS = "^(fmax|scatter_reduce|nn.functional.conv2d|cummin)/0"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The tenth on the CPU, and some of it as plans that are built and not run."""
    folder: pathlib.Path = tmp_path_factory.mktemp("sweep")
    common = ["--backend", "onnx", "--workers", "2", "--limit", "300", "--out", str(folder)]
    run.main(["--where", "cpu", "--tenth", *common])
    run.main(["--where", "build", "--samples", "1", "--only", PLANS, "--variant", "fp16 dynamic", *common])
    return [*run.read(folder / "cpu.jsonl"), *run.read(folder / "build.jsonl")]


def test_every_operator_is_right_or_refused(records: list[dict[str, Any]]) -> None:
    faults = [record for record in records if record["whole"]["outcome"] in run.FAULTS]
    assert len(records) == len(cases.tenth()) + 4 and not faults, faults


def test_nearly_every_operator_is_right(records: list[dict[str, Any]]) -> None:
    counted = [r for r in records if r["whole"]["outcome"] not in ("not counted", "no such case")]
    wanting = [f"{r['case']}: {r['whole']['detail']}" for r in counted if r["whole"]["outcome"] != "right"]
    assert len(counted) > 60 and len(wanting) <= 0.08 * len(counted), wanting


class _Fast:
    """In place of a compiled module: ``function`` of the operator's own result."""

    report = ttb.Report("onnx", "fp32", "onnxruntime", "cpu")

    def __init__(self, module: nn.Module, function: Callable[[torch.Tensor], Any]):
        self._module, self._function = module, function

    def __call__(self, *tensors: torch.Tensor) -> Any:
        return self._function(self._module(*tensors))


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda y: y * 1.01, "off"),
        (lambda y: y.double(), "float64"),
        (lambda y: (y,), "structure"),
        (lambda y: y[:1], "instead of"),
        (lambda y: torch.where(y == y.max(), torch.nan, y), "off"),
    ],
)
def test_a_wrong_result_is_seen(
    function: Callable[[torch.Tensor], Any], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ttb, "compile", lambda module, *_, **__: _Fast(module, function))
    found = trial.attempt(cases.CaseId("exp", 0, "fp32"), "cpu")
    assert found.outcome == "wrong" and what in found.detail, found


def test_a_constant_baked_in_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def baked(module: nn.Module, inputs: tuple[torch.Tensor, ...], *_: Any, **__: Any) -> _Fast:
        first = module(*inputs)
        return _Fast(module, lambda _: first)

    monkeypatch.setattr(ttb, "compile", baked)
    assert trial.attempt(cases.CaseId("exp", 0, "fp32"), "cpu").outcome == "wrong"


def test_an_exception_that_is_not_the_packages_own_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setattr(ttb, "compile", broken)
    found = trial.attempt(cases.CaseId("exp", 0, "fp32"), "cpu")
    assert found.outcome == "raw error" and found.error == "KeyError"


def test_a_case_that_ends_its_process_or_takes_too_long_is_recorded() -> None:
    worker = run.Worker("cpu", "onnx")
    try:
        assert worker.run("exp/0/fp32", 0.01)["whole"]["outcome"] == "timeout"
        process = worker._start()
        threading.Timer(0.1, process.kill).start()
        assert worker.run("exp/0/fp32", 300)["whole"]["outcome"] == "crash"
        assert worker.run("bitwise_and/0/integers", 300)["whole"]["outcome"] == "no such case"
    finally:
        worker.stop()
