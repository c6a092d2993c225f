"""Histograms and the ranges that are chosen from them."""

from __future__ import annotations

import pytest
import torch

from torchtrt_bridge.errors import InvalidOption
from torchtrt_bridge.quantization.formats import FORMATS
from torchtrt_bridge.quantization.histogram import BINS, Histogram
from torchtrt_bridge.quantization.ranges import choose_range
from torchtrt_bridge.quantization.settings import METHODS, Quantization

INT8, FP8 = FORMATS["int8"], FORMATS["fp8"]


def test_a_histogram_counts_every_value_of_every_batch_whatever_their_order():
    small, large = torch.randn(1000) * 0.1, torch.randn(1000) * 7
    found = Histogram.of(small).with_values(large)
    assert found.counts.sum() == 2000 and found.limit >= large.abs().max()
    assert found.low == large.min().item() and found.high == large.max().item()
    assert found.amax == large.abs().max().item()
    inside = found.counts[: BINS // 2].sum()
    expected = (torch.cat([small, large]).abs() < found.limit / 2).sum()
    assert abs(inside - expected) <= 1  # a value on the edge of a bin


def test_zeros_alone_and_zeros_first():
    zeros = Histogram.of(torch.zeros(10))
    assert zeros.amax == 0 and choose_range(zeros, INT8, Quantization()) == 0
    found = zeros.with_values(torch.full((5,), -2.0))
    assert found.counts.sum() == 15 and found.amax == 2 and found.counts[0] == 10


@pytest.mark.parametrize("method", METHODS)
def test_an_outlier_is_clipped_by_every_method_but_max(method):
    values = torch.cat([torch.randn(100_000), torch.tensor([60.0])])
    chosen = choose_range(Histogram.of(values), INT8, Quantization(method=method))
    assert chosen == 60 if method == "max" else 2 < chosen < 50


def test_mse_is_the_best_of_all_ranges():
    values = torch.randn(50_000) ** 3
    histogram = Histogram.of(values)

    def loss(amax, form):
        scale = amax / form.max
        return (form.rounded(values / scale) * scale - values).square().mean().item()

    for form in (INT8, FP8):
        best = min(loss(histogram.amax * i / 64, form) for i in range(1, 65))
        assert loss(choose_range(histogram, form, Quantization(method="mse")), form) <= best * 1.02


def test_percentile_leaves_out_the_share_that_it_says():
    values = torch.rand(100_000)
    chosen = choose_range(Histogram.of(values), INT8, Quantization(method="percentile", percentile=99.0))
    assert abs(chosen - 0.99) < 0.002


def test_entropy_has_no_meaning_for_fp8():
    with pytest.raises(InvalidOption, match="evenly spaced, and this is fp8"):
        choose_range(Histogram.of(torch.randn(10)), FP8, Quantization(method="entropy"))
