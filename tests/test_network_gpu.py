"""Networks written by hand, run: compared with a reference in PyTorch, saved, and loaded again."""

from __future__ import annotations

import pytest
import torch
from comparing import assert_same
from test_network import WEIGHT, project

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import VerificationFailed

pytestmark = pytest.mark.gpu


def both(ctx, x, scale):
    """``x @ WEIGHT`` in fp16, and ``x * scale`` over the last axis in rows of two."""
    half = ctx.cast(project(ctx, x).get_output(0), torch.float16)
    product = ctx.network.add_elementwise(*ctx.broadcast(x, scale), ctx.trt.ElementWiseOperation.PROD).get_output(0)
    return {"half": half, "rows": [ctx.reshape(product, [ctx.size(x, 0), ctx.size(x, 1), 2, 2])]}


def reference(x, scale):
    return {"half": (x @ WEIGHT.to(x)).half(), "rows": [(x * scale).unflatten(-1, (2, 2))]}


DYNAMIC = {"x": {0: ttb.Dim(1, 2, 5), 1: ttb.Dim(1, 3, 7)}}


def test_it_is_compared_with_the_reference_over_its_ranges_and_survives_its_file(tmp_path):
    inputs = (torch.randn(2, 3, 4, device="cuda"), torch.randn(4, device="cuda"))
    fast = ttb.from_network(both, inputs, reference=reference, dynamic_shapes=DYNAMIC)
    assert len(fast.report.verification) == 6  # two results, at three sizes
    fast.save(tmp_path / "fast.safetensors")
    for module in (fast, ttb.load(tmp_path / "fast.safetensors")):
        for shape in ((1, 1, 4), (5, 7, 4), (3, 2, 4)):
            x = torch.randn(shape, device="cuda")
            assert_same(module(x, inputs[1]), reference(x, inputs[1]), rtol=2e-2, atol=2e-2)


def test_another_result_than_the_references_is_refused():
    with pytest.raises(VerificationFailed):
        ttb.from_network(project, torch.randn(2, 4, device="cuda"), reference=lambda x: 2 * x @ WEIGHT.to(x))


def test_arguments_by_name(tmp_path):
    def network(ctx, *, a, b):
        return ctx.network.add_elementwise(a, b, ctx.trt.ElementWiseOperation.SUB)

    a, b = torch.randn(2, 3, device="cuda"), torch.randn(2, 3, device="cuda")
    fast = ttb.from_network(network, {"a": a, "b": b}, reference=lambda *, a, b: a - b)
    assert_same(fast(b=b, a=a), a - b)
