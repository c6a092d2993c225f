"""What the author of a custom layer tests: its kernel, and that every form of its converter agrees with it.

pytest examples/custom_layer/tests
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fused_norm.converters import add_rms_norm
from torch import Tensor, nn

import torchtrt_bridge as ttb


def samples() -> Iterator[tuple[Tensor, Tensor, nn.Parameter, float]]:
    """Arguments of the operator; a parameter is a weight, the other tensors are inputs."""
    yield torch.randn(2, 3, 48), torch.randn(2, 3, 48), nn.Parameter(torch.rand(48) + 0.5), 1e-6


def test_every_form_agrees_with_the_operator_on_every_route() -> None:
    ttb.check_converter(add_rms_norm, samples).raise_if_failed()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the Triton kernel needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7, 64), (3, 1000), (0, 8)])
def test_the_kernel_computes_what_plain_pytorch_does(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.rand(shape[-1])
    arguments = [tensor.to("cuda", dtype) for tensor in (x, residual, weight)]
    found = torch.ops.fused_norm.add_rms_norm(*arguments, 1e-6)
    expected = torch.ops.fused_norm.add_rms_norm(*[tensor.cpu() for tensor in arguments], 1e-6)
    for one, other in zip(found, expected):
        rounding = 4 * torch.finfo(dtype).eps  # the two round in another order
        torch.testing.assert_close(one.cpu(), other, rtol=rounding, atol=rounding)
