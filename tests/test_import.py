"""What ``import torchtrt_bridge`` costs, and what it does not import."""

from __future__ import annotations

import json
import subprocess
import sys

import torchtrt_bridge

_IMPORT = """
import json, sys, time
import torch
start = time.perf_counter()
import torchtrt_bridge
seconds = time.perf_counter() - start
names = ("tensorrt", "onnx", "torch_tensorrt", "torch2trt", "modelopt", "transformers")
heavy = [name for name in sys.modules if name.startswith(names)]
print(json.dumps([seconds, heavy]))
"""


def test_importing_is_quick_and_imports_no_tensorrt_and_no_onnx(capsys):
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
        seconds, heavy = json.loads(done.stdout)
        assert heavy == [] and done.stderr == ""
        runs.append(seconds)
    with capsys.disabled():
        print(f"\nimport torchtrt_bridge: {min(runs) * 1e3:.0f} ms beyond torch (promised: 100 ms)")
    assert min(runs) < 0.5


def test_every_public_name_is_there():
    for name in torchtrt_bridge.__all__:
        assert getattr(torchtrt_bridge, name) is not None, name
    assert set(torchtrt_bridge.__all__) <= set(dir(torchtrt_bridge))


def test_a_name_that_is_not_there_is_an_attribute_error():
    script = "import torchtrt_bridge as t\ntry: t.compiler_\nexcept AttributeError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "module 'torchtrt_bridge' has no attribute 'compiler_'"
