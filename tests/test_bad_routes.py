"""Routes whose package is missing, breaks or crashes when it is imported: each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import json, sys, torch, torchtrt_bridge as ttb
backend, target, missing = sys.argv[1:]
if missing:
    sys.modules[missing] = None  # as if it were not installed
torch.manual_seed(0)
model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()).eval(), torch.randn(2, 4)
try:
    if target:
        fast = ttb.build(model, x, backend=backend, target=target)
    else:
        fast = ttb.compile(model, x, backend=backend)
        torch.testing.assert_close(fast(x), model(x))
    print(json.dumps({"routes": fast.report.routes}))
except ttb.errors.BridgeError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""
BROKEN = 'raise OSError("libnvinfer.so.99: cannot open shared object file")\n'
CRASHING = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"


def run(folder: Path, backend: str, *, target: str = "", missing: str = "", package: str = "", code: str = ""):
    """What comes of a compilation where ``package`` has ``code`` in it."""
    if package:
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(folder), "TORCHTRT_BRIDGE_CACHE": "off"}
    command = [sys.executable, "-W", "ignore", "-c", RUN, backend, target, missing]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_onnx_without_onnxscript(tmp_path):
    found = run(tmp_path, "onnx", missing="onnxscript")
    assert found["error"] == "BackendUnavailable" and "pip install onnxscript" in found["message"]


def test_torch2trt_that_breaks_when_it_is_imported(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    found = run(tmp_path, "torch2trt", target="portable", package="torch2trt", code=BROKEN)
    assert found["error"] == "BackendUnavailable" and "libnvinfer.so.99" in found["message"]


needs_torch_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("torch_tensorrt") is None, reason="it is looked for by its distribution"
)


@needs_torch_tensorrt
def test_torch_tensorrt_that_breaks_when_it_is_imported(tmp_path):
    found = run(tmp_path, "torch_tensorrt", target="portable", package="torch_tensorrt", code=BROKEN)
    assert found["error"] == "BackendUnavailable" and "libnvinfer.so.99" in found["message"]


@needs_torch_tensorrt
def test_a_route_that_crashes_its_process_costs_the_others_nothing(tmp_path):
    found = run(tmp_path, "fastest", package="torch_tensorrt", code=CRASHING)
    rows = {row["route"]: row for row in found["routes"]}
    assert rows["onnx"]["outcome"] == "chosen"
    assert rows["torch_tensorrt"]["outcome"] == "failed" and "SIGSEGV" in rows["torch_tensorrt"]["reason"]
