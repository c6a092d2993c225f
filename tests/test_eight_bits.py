"""Eight bits that are no gain on a GPU are said in the report: by one product, measured once for a GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch

from torchtrt_bridge import eight_bits
from torchtrt_bridge.measuring import Timing

pytest.importorskip("tensorrt_rtx")
GPU = torch.device("cuda", 0)


@pytest.fixture
def times(monkeypatch, tmp_path):
    """What the products take, in seconds, on a GPU that is not here; and how often they are measured."""
    found = {"fp16": 1e-3, "int8": 1.9e-3, "fp8": 0.6e-3, "measured": []}

    def measure(calls, device, budget):
        found["measured"].append(tuple(calls))
        return tuple(Timing(name, found[name], 0.0, 0.0, 1) for name in calls)

    monkeypatch.setenv("TORCHTRT_BRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch, "randn", lambda *shape, device: torch.zeros(1))
    monkeypatch.setattr(eight_bits, "product", lambda name: name)
    monkeypatch.setattr(eight_bits, "_call", lambda plan, device, x, tf32: plan)
    monkeypatch.setattr(eight_bits, "measure", measure)
    eight_bits._ratio.cache_clear()
    yield found
    eight_bits._ratio.cache_clear()


def test_int8_that_is_slower_is_said_and_measured_once(times):
    note = eight_bits.no_gain("int8", GPU, False)
    assert "int8 is no gain here" in note and "1.90 times as long as in fp16 on this a GPU" in note
    eight_bits._ratio.cache_clear()  # another process
    assert eight_bits.no_gain("int8", GPU, False) == note
    assert times["measured"] == [("fp16", "int8")]


def test_a_gain_is_not_mentioned(times):
    assert eight_bits.no_gain("fp8", GPU, False) is None
    assert times["measured"] == [("fp16", "fp8")]


def test_a_measurement_that_fails_costs_nothing(times, monkeypatch):
    monkeypatch.setattr(eight_bits, "product", lambda name: 1 / 0)
    assert eight_bits.no_gain("int8", GPU, False) is None


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_the_product_is_in_that_precision(precision, monkeypatch):
    monkeypatch.setattr(eight_bits, "_SIDE", 256)
    (work,) = eight_bits.product(precision).work
    assert (work.typed, work.built, work.flops) == (precision, precision, 2 * 256**3)
