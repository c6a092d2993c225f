"""Moves of a real engine between GPU and CPU; the rest is in tests/dropin."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import DeviceMismatch

pytestmark = pytest.mark.gpu
WIDTH = 4096


@pytest.fixture(scope="module")
def heavy():
    """A model of 128 MiB, compiled, and an input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).eval().cuda()
    x = torch.randn(4, WIDTH, device="cuda")
    return model, ttb.compile(model, (x,)), x


def free() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def right(fast, model, x):
    with torch.no_grad():
        expected = model(x)
    assert ((fast(x) - expected).norm() / expected.norm()).item() < 1e-4


def test_cpu_returns_the_memory_and_cuda_brings_the_engine_back(heavy):
    model, fast, x = heavy
    fast = copy.deepcopy(fast)
    right(fast, model, x)
    before = free()
    nn.Sequential(fast).cpu()
    assert free() - before > 100 * 2**20
    with pytest.raises(DeviceMismatch, match=r"\.cuda\(\)"):
        fast(x)
    nn.Sequential(fast).cuda()
    assert fast.device == x.device
    right(fast, model, x)


def test_twenty_moves_leave_no_memory_behind(heavy):
    model, fast, x = heavy
    fast = copy.deepcopy(fast)
    fast.cpu().cuda()
    right(fast, model, x)
    before = free()
    for _ in range(20):
        fast.cpu().cuda()
    right(fast, model, x)
    assert before - free() < 64 * 2**20


def test_kernels_compiled_so_far_survive_the_wait(heavy):
    model, fast, x = heavy
    fast = copy.deepcopy(fast)
    right(fast, model, x)
    size = fast.state_dict()["runtime_cache"].numel()
    assert fast.cpu().state_dict()["runtime_cache"].numel() == size


def test_a_whole_module_goes_where_map_location_says(heavy, tmp_path):
    model, fast, x = heavy
    torch.save(fast, tmp_path / "fast.pt")
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    again = torch.load(tmp_path / "fast.pt", map_location=last)
    assert again.device == last
    right(again, copy.deepcopy(model).to(last), x.to(last))
    assert torch.load(tmp_path / "fast.pt", map_location="cpu").device == x.device  # read on the CPU, run where it can


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu(heavy):
    model, fast, x = heavy
    fast, other = copy.deepcopy(fast).to("cuda:1"), x.to("cuda:1")
    assert fast.device == other.device and fast(other).device == other.device
    right(fast, copy.deepcopy(model).to("cuda:1"), other)
    with pytest.raises(DeviceMismatch, match="runs on cuda:1"):
        fast(x)
    with pytest.raises(DeviceMismatch, match="DataParallel"):
        nn.DataParallel(copy.deepcopy(fast).to("cuda:0"), device_ids=[0, 1])(x)
