"""An interrupt ends what it was meant for, also one that Python loses."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.interrupts import none_lost

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Losing:
    """An object in whose destructor the interrupt comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class InCapture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Losing()
        return self.layer(x)


def test_an_interrupt_that_is_lost_in_a_capture_ends_the_compilation() -> None:
    with pytest.raises(KeyboardInterrupt):
        ttb.compile(InCapture().eval(), torch.randn(1, 3))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_is_not_lost_ends_the_block_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), none_lost():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(30)
    assert time.monotonic() - began < 10


def test_it_comes_before_an_error_that_it_may_have_caused() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, none_lost():
        Losing()
        raise ValueError("half done")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError), none_lost():
        raise ValueError("of its own")


def test_an_import_comes_to_its_end_first(tmp_path, monkeypatch) -> None:
    (tmp_path / "half_way_in.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "until = time.monotonic() + 0.2\n"
        "while time.monotonic() < until:\n"
        "    pass\n"
        "whole = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    went_on = []
    with pytest.raises(KeyboardInterrupt), none_lost():
        import half_way_in

        time.sleep(30)
        went_on.append(half_way_in)
    import half_way_in

    assert half_way_in.whole and not went_on
    time.sleep(0.2)  # no second interrupt follows


def test_a_module_that_compiles_when_it_is_imported_is_interrupted(tmp_path, monkeypatch) -> None:
    (tmp_path / "compiles.py").write_text(
        "import os, signal, time\n"
        "from torchtrt_bridge.interrupts import none_lost\n"
        "with none_lost():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        import compiles  # noqa: F401
    assert time.monotonic() - began < 10


def test_somebody_elses_handler_stays() -> None:
    seen: list[int] = []
    handler = lambda number, frame: seen.append(number)  # noqa: E731
    usual = signal.signal(signal.SIGINT, handler)
    try:
        with none_lost():
            assert signal.getsignal(signal.SIGINT) is handler
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert seen == [signal.SIGINT]


def test_a_handler_that_is_set_within_stays() -> None:
    usual = signal.getsignal(signal.SIGINT)
    try:
        with none_lost():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)


def test_other_threads_are_left_alone() -> None:
    handlers = []

    def look() -> None:
        with none_lost():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
