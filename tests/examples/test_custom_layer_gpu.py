"""The example package on a GPU: its Triton kernel is the reference of every route."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from installed import EXAMPLE, install, run

pytestmark = pytest.mark.gpu
COMPILING = """
import json, sys, torch, torchtrt_bridge as ttb
from fused_norm import Block

torch.manual_seed(0)
model, x = Block().cuda().eval(), torch.randn(2, 8, 64, device="cuda")
route, precision = sys.argv[1:]
try:
    fast = ttb.compile(model, x, precision, backend=route, hybrid=False, dynamic_batch=(1, 2, 8),
                       build=ttb.BuildOptions(tf32=True))  # TensorRT-RTX 1.4 rounds fp32 products so in any case
except ttb.errors.BackendUnavailable as error:
    print(json.dumps({"missing": str(error)}))
    sys.exit()
errors = {}
for batch in (1, 2, 8):
    y = torch.randn(batch, 8, 64, device="cuda")
    with torch.no_grad():
        expected = model(y)
    errors[batch] = ((fast(y) - expected).norm() / expected.norm()).item()
print(json.dumps({"errors": errors, "notes": list(fast.report.notes), "runtime": fast.report.runtime}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("custom_layer"))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("route", ["onnx", "torch_tensorrt", "torch2trt"])
def test_the_route_computes_what_the_triton_kernel_does(site: Path, tmp_path: Path, route: str, precision: str) -> None:
    found = json.loads(run(["-c", COMPILING, route, precision], site, tmp_path).splitlines()[-1])
    if "missing" in found:
        pytest.skip(found["missing"])
    assert found["runtime"] == "tensorrt"
    assert max(found["errors"].values()) < {"fp32": 3e-3, "fp16": 2e-2}[precision]
    assert any("TensorRT layers of fused_norm::add_rms_norm" in note for note in found["notes"])


def test_what_was_saved_loads_and_runs_without_the_package(site: Path, tmp_path: Path) -> None:
    run([str(EXAMPLE / "compile_routes.py"), "compiled", "--precision", "fp16"], site, tmp_path)
    again = run([str(EXAMPLE / "load_elsewhere.py"), "compiled"], None, tmp_path)
    assert "onnx-fp16.safetensors" in again


def test_the_authors_own_tests_pass(site: Path, tmp_path: Path) -> None:
    printed = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")], site, tmp_path)
    assert "13 passed" in printed
