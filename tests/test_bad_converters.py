"""Converters that go wrong while a model is compiled, and registrations that come meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchtrt_bridge as ttb
from torchtrt_bridge.capture import capture
from torchtrt_bridge.errors import ConverterFailed
from torchtrt_bridge.lowering import lower


@torch.library.custom_op("bad_converters_tests::shift", mutates_args=())
def shift(x: Tensor, by: float = 1.0) -> Tensor:
    return x + by


@shift.register_fake
def _(x: Tensor, by: float = 1.0) -> Tensor:
    return torch.empty_like(x)


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.bad_converters_tests.shift(x, 2.0)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Shift()).eval()


def right(x: Tensor, by: float) -> Tensor:
    return by + x


def wrong(x: Tensor, by: float) -> Tensor:
    return x - by


@pytest.fixture
def registered() -> Iterator[Any]:
    """A converter that is registered for the process, for other threads too; afterwards it is gone."""
    converter = ttb.converter("bad_converters_tests::shift")(right)
    yield converter
    ttb.converter.remove("bad_converters_tests::shift")


def test_a_compilation_keeps_to_what_was_registered_when_it_began(registered: Any) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def when(call: ttb.Call) -> bool:  # asked while the model is lowered
        asked.set()
        return go_on.wait(60)

    ttb.converter("bad_converters_tests::shift", when=when, priority=1)(right)
    compiled: list[Any] = []
    net, x = model(), torch.randn(3, 4)
    thread = threading.Thread(target=lambda: compiled.append(ttb.compile(net, x, backend="onnx")))
    thread.start()
    try:
        assert asked.wait(60)
        ttb.converter("bad_converters_tests::shift", priority=2)(wrong)  # from another thread, meanwhile
    finally:
        go_on.set()
        thread.join()
    torch.testing.assert_close(compiled[0](x), net(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ttb.errors.VerificationFailed):  # the next one has it
        ttb.compile(net, x, backend="onnx", hybrid=False)


def test_threads_that_register_do_not_disturb_those_that_compile(registered: Any) -> None:
    net, x = model(), torch.randn(3, 4)
    done, failures = threading.Event(), list[BaseException]()

    def register() -> None:
        try:
            while not done.wait(0.001):
                made = ttb.converter(nn.Tanh)(lambda module, x: torch.tanh(x))
                ttb.converter.remove(made)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=register)
    thread.start()
    try:
        for _ in range(5):
            snapshot = ttb.converter.snapshot()
            captured = lower(capture(net, x, converters=snapshot), snapshot)
            torch.testing.assert_close(captured.program.module()(x)[0], net(x))
    finally:
        done.set()
        thread.join()
    assert not failures
    assert registered.registration in ttb.converter.list()
    assert not any(each.target.name.endswith("Tanh") for each in ttb.converter.list() if each.source == "user")


def test_where_a_form_fails_the_next_route_is_taken_and_the_report_names_it() -> None:
    def broken(x: Any, by: float) -> Any:
        raise KeyError("no table")

    made = ttb.converter("bad_converters_tests::shift", register=False)(right)
    made.onnx(broken)
    net, x = model(), torch.randn(3, 4)
    with pytest.raises(
        ConverterFailed, match=r"bad_converters_tests::shift in 1 .*raised KeyError in its ONNX form"
    ):
        ttb.compile(net, x, backend="onnx", hybrid=False, converters=[made])
    fast = ttb.compile(net, x, converters=[made])
    assert fast.backend == "torch_tensorrt"
    failed = fast.report.routes[0]
    assert failed["outcome"] == "failed" and "bad_converters_tests::shift in 1 " in failed["reason"]
    torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)
