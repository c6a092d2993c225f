"""backend="fastest" on a GPU: real engines, with and without CUDA graphs, and nothing built the second time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchtrt_bridge as ttb

pytestmark = pytest.mark.gpu


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = x + torch.nn.functional.silu(block(x))
        return self.head(x.mean((2, 3)))


def make():
    torch.manual_seed(0)
    return Net().eval().cuda()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHTRT_BRIDGE_CACHE", str(tmp_path / "cache"))


def close(module, model, x, rtol=5e-3):
    with torch.no_grad():
        expected = model(x)
    for _ in range(4):
        assert ((module(x) - expected).norm() / expected.norm()).item() < rtol


def test_the_choice_is_measured_kept_and_right(monkeypatch):
    model, x = make(), torch.randn(4, 3, 32, 32, device="cuda")
    first = ttb.compile(model, x, "fp16", backend="fastest")
    measured = [row for row in first.report.routes if row["milliseconds"] is not None]
    assert {row["cuda_graph"] for row in measured} == {True, False}
    assert measured[0]["outcome"] == "chosen" and measured[0]["route"] == first.backend
    assert measured[0]["milliseconds"] == min(row["milliseconds"] for row in measured)
    assert (first.cuda_graph == "on") is measured[0]["cuda_graph"]
    close(first, model, torch.randn_like(x))

    def build(*args, **kwargs):
        raise AssertionError("an engine is built")

    monkeypatch.setattr("torchtrt_bridge.trt.build.build", build)
    again = make()
    second = ttb.compile(again, x, "fp16", backend="fastest")
    assert second.report.routes == first.report.routes and second.cuda_graph == first.cuda_graph
    close(second, again, torch.randn_like(x))


def test_what_was_measured_goes_with_the_saved_module(tmp_path):
    model, x = make(), torch.randn(4, 3, 32, 32, device="cuda")
    fast = ttb.compile(model, x, "fp16", backend="fastest")
    fast.save(tmp_path / "fast.safetensors")
    loaded = ttb.load(tmp_path / "fast.safetensors")
    assert loaded.cuda_graph == fast.cuda_graph
    close(loaded, model, x)


@pytest.mark.parametrize("graph", [True, False])
def test_only_what_was_asked_for_is_measured(graph):
    model, x = make(), torch.randn(4, 3, 32, 32, device="cuda")
    fast = ttb.compile(model, x, "fp16", backend="fastest", cuda_graph=graph, dynamic_batch=(1, 4, 8))
    assert {row["cuda_graph"] for row in fast.report.routes if row["milliseconds"] is not None} == {graph}
    for batch in (1, 4, 8, 4):
        close(fast, model, torch.randn(batch, 3, 32, 32, device="cuda"))


def test_memory_of_the_losers_is_given_back():
    import gc

    model, x = make(), torch.randn(4, 3, 32, 32, device="cuda")
    close(ttb.compile(model, x, "fp16", backend="fastest"), model, x)  # what torch itself keeps is there from now on

    def used():
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    before = used()
    for _ in range(2):
        fast = ttb.compile(model, x, "fp16", backend="fastest")
        fast(x)
        del fast
        assert used() == before
