"""Moves of a module that holds a plan, and forks, where a fake stands for the GPU; the rest is in tests/dropin."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from saved import artifact
from torch._subclasses import FakeTensorMode

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import DeviceMismatch, EngineMismatch, UsedAfterFork
from torchtrt_bridge.runtime import forks, moves

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("fn", "device", "ignored"),
    [
        (lambda t: t, None, ""),
        (lambda t: t.half(), None, "a move to torch.float16"),
        (lambda t: t.to(torch.float32), None, ""),
        (lambda t: t.to(memory_format=torch.channels_last), None, "a memory format"),
        (lambda t: t.to("meta", torch.float16), "meta", "a move to torch.float16"),
        (lambda t: torch.empty_like(t, device="cpu"), None, ""),
        (lambda t: FakeTensorMode().from_tensor(t).to("meta"), "meta", ""),
    ],
)
def test_what_a_move_wants(fn, device, ignored):
    found = moves.wanted(fn, CPU, torch.float32)
    assert found == moves.Move(torch.device(device) if device else None, ignored)


def test_what_a_move_raises_is_raised():
    def fails(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such device")

    with pytest.raises(RuntimeError, match="no such device"):
        moves.wanted(fails, CPU, torch.float32)


class Engine:
    """Stands for an engine on a GPU."""

    def __call__(self, tensors):
        return list(tensors)

    def kernels(self):
        return torch.arange(5, dtype=torch.uint8)


@pytest.fixture
def on_gpu(monkeypatch):
    """A module whose plan seems to run on ``cuda:0``."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = ttb.TRTModule("cpu", _artifact=artifact(constants=(torch.tensor(3), torch.zeros(2))))
    module._execution, module._device = Engine(), torch.device("cuda", 0)
    monkeypatch.setattr(moves, "wanted", lambda fn, device, dtype: moves.Move(fn, ""))
    return module


def test_cpu_lets_the_engine_go_and_keeps_its_kernels(on_gpu):
    engine = weakref.ref(on_gpu._execution)
    assert on_gpu._apply(CPU) is on_gpu and on_gpu.device == CPU
    gc.disable()
    try:
        assert engine() is None  # at once, without a collection
    finally:
        gc.enable()
    assert on_gpu.state_dict()["runtime_cache"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DeviceMismatch, match=r"waits and does not run.*\.cuda\(\)"):
        on_gpu(torch.zeros(2, 4))


def test_a_module_lets_its_engine_go_when_it_is_deleted(on_gpu):
    engine = weakref.ref(on_gpu._execution)
    alone = ttb.TRTModule("cpu", _artifact=on_gpu._artifact)
    alone._execution, on_gpu._execution = on_gpu._execution, None
    gc.disable()
    try:
        del alone
        assert engine() is None
    finally:
        gc.enable()


def test_cuda_brings_it_back(on_gpu, monkeypatch):
    made = []

    def make(self, held):
        made.append(self._saved_caches[0].tolist())
        return Engine()

    monkeypatch.setattr(ttb.TRTModule, "_make_execution", make)
    monkeypatch.setattr(ttb.TRTModule, "_settle", lambda self, device: setattr(self, "_device", device))
    on_gpu._apply(CPU)
    on_gpu._apply(torch.device("cuda", 1))
    assert on_gpu.device == torch.device("cuda", 1) and made == [[0, 1, 2, 3, 4]]
    assert isinstance(on_gpu._execution, Engine)


def test_a_move_that_fails_leaves_the_module_as_it_was(on_gpu, monkeypatch):
    def make(self, held):
        raise EngineMismatch("another GPU")

    monkeypatch.setattr(ttb.TRTModule, "_make_execution", make)
    monkeypatch.setattr(ttb.TRTModule, "_settle", lambda self, device: setattr(self, "_device", device))
    before = on_gpu._execution
    with pytest.raises(EngineMismatch):
        on_gpu._apply(torch.device("cuda", 1))
    assert on_gpu._execution is before and on_gpu.device == torch.device("cuda", 0)


def test_a_plan_without_a_gpu_is_held_and_not_run():
    module = ttb.TRTModule(_artifact=artifact())
    if not torch.cuda.is_available():
        assert module.cpu().device == CPU
        with pytest.raises(EngineMismatch, match="needs an NVIDIA GPU"):
            module(torch.zeros(2, 4))


def test_an_empty_module_remembers_where_it_was_moved(monkeypatch):
    monkeypatch.setattr(moves, "wanted", lambda fn, device, dtype: moves.Move(fn, ""))
    module = ttb.TRTModule()
    module._apply(torch.device("cuda", 0))
    assert module.device == module._wanted_device == torch.device("cuda", 0)


def test_cpu_in_a_forked_process_touches_no_gpu(on_gpu, monkeypatch):
    shown = []
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(moves, "wanted", lambda fn, device, dtype: shown.append(device) or moves.Move(None, ""))
    assert on_gpu.cpu() is on_gpu and shown == [CPU] and on_gpu.device == CPU
    assert on_gpu.state_dict()["engine"].numel() == 64


def test_a_forked_process_is_told_so(monkeypatch):
    forks.check_gpu()
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(UsedAfterFork, match="'spawn'"):
        forks.check_gpu()
