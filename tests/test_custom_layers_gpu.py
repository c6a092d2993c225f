"""A model with custom layers on a GPU: by each route, saved, loaded by a process that knows nothing of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from older_versions import rounds_to_tf32
from torch import Tensor, nn

import torchtrt_bridge as ttb

pytestmark = pytest.mark.gpu

LIBRARY = torch.library.Library("custom_layers_gpu_tests", "DEF")
LIBRARY.define("norm(Tensor x, Tensor weight, float eps=1e-05) -> Tensor")


def kernel(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


LIBRARY.impl("norm", kernel, "CUDA")  # and no other: the operator has a kernel for GPUs alone
torch.library.register_fake("custom_layers_gpu_tests::norm", lambda x, weight, eps=1e-5: torch.empty_like(x))


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(32) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.custom_layers_gpu_tests.norm(x, self.weight)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x * self.slope)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), Norm(), Gate(), nn.Linear(32, 8)).eval()


def of_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def of_gate(gate: Gate, x: Tensor) -> Tensor:
    return x * (torch.tanh(x * gate.slope / 2) + 1) / 2


@pytest.fixture(autouse=True)
def _converters() -> Iterator[None]:
    with ttb.converter.scope():
        ttb.converter("custom_layers_gpu_tests::norm")(of_norm)
        ttb.converter(Gate)(of_gate)
        yield


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", ["onnx", "torch_tensorrt"])
def test_each_route_and_another_process_compute_what_eager_does(backend: str, precision: str, tmp_path: Path) -> None:
    if backend == "torch_tensorrt" and importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed")
    net, x = model().cuda(), torch.randn(4, 16, device="cuda")
    tolerance, build = 1e-4 if precision == "fp32" else 2e-2, None
    if precision == "fp32" and rounds_to_tf32():
        tolerance, build = 5e-3, ttb.BuildOptions(tf32=True)
    fast = ttb.compile(net, x, precision, backend=backend, dynamic_batch=(1, 4, 16), hybrid=False, build=build)
    assert fast.report.runtime == "tensorrt"
    for batch in (1, 4, 16):
        x = torch.randn(batch, 16, device="cuda")
        torch.testing.assert_close(fast(x), net(x), rtol=tolerance, atol=tolerance)
    fast.save(tmp_path / "fast")
    torch.save((x, net(x)), tmp_path / "expected")
    program = f"""
        import sys, torch, torchtrt_bridge as ttb
        x, expected = torch.load(sys.argv[1] + "/expected")
        actual = ttb.load(sys.argv[1] + "/fast")(x)
        torch.testing.assert_close(actual, expected, rtol={tolerance}, atol={tolerance})
        assert not any("custom_layers_gpu_tests" in name for name in torch._C._dispatch_get_all_op_names())
        print("the same")
    """
    command: list[Any] = [sys.executable, "-c", textwrap.dedent(program), tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "the same" in run.stdout, run.stderr


def test_an_onnx_form_computes_what_eager_does() -> None:
    from onnxscript import opset18 as op

    with ttb.converter.scope():
        of_relu = ttb.converter("aten::leaky_relu", precision="fp32")

        @of_relu.onnx
        def _(x: Any, slope: float) -> Any:
            return op.Max(x, op.Mul(x, slope))

        net, x = nn.Sequential(nn.Linear(16, 32), nn.LeakyReLU(0.2)).eval().cuda(), torch.randn(4, 16, device="cuda")
        fast = ttb.compile(net, x, "fp16", backend="onnx", dynamic_batch=(1, 4, 16), hybrid=False)
        torch.testing.assert_close(fast(x), net(x), rtol=2e-2, atol=2e-2)
        assert "aten::leaky_relu" in fast.report.kept_fp32


def test_without_a_converter_the_kernel_runs_between_engines() -> None:
    ttb.converter.remove(of_norm)
    ttb.converter.remove(of_gate)
    net, x = model().cuda(), torch.randn(4, 16, device="cuda")
    fast = ttb.compile(net, x, "fp16")
    torch.testing.assert_close(fast(x), net(x), rtol=2e-2, atol=2e-2)
    (layer,) = fast.report.hybrid["layers"]
    assert (layer["operator"], layer["place"]) == ("custom_layers_gpu_tests.norm", "1")


def test_a_plan_for_a_gpu_elsewhere_is_built_where_the_operator_has_no_kernel() -> None:
    net = model()  # on the CPU
    built = ttb.build(net, torch.randn(4, 16), "fp16", backend="onnx", hybrid=False)
    assert any("custom_layers_gpu_tests.norm has no kernel for cpu" in note for note in built.report.notes)
    x = torch.randn(4, 16, device="cuda")
    torch.testing.assert_close(built.cuda()(x), net.cuda()(x), rtol=2e-2, atol=2e-2)
