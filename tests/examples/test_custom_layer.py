"""The example package: pip installs it, every route takes its operator, and what was saved loads without it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from installed import EXAMPLE, install, run
from safetensors.torch import load_file

import torchtrt_bridge as ttb

BUILDING = """
import torch, torchtrt_bridge as ttb
from fused_norm import Block

listed = [r for r in ttb.converter.list() if r.target.name == "fused_norm::add_rms_norm"]
print(*[(r.source, r.forms) for r in listed])
for route in ("onnx", "torch_tensorrt"):
    plan = ttb.build(Block().eval(), torch.randn(2, 8, 64), "fp16", backend=route, hybrid=False)
    plan.save(f"{route}-plan.safetensors")
    print(route, *[note for note in plan.report.notes if "TensorRT layers" in note])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("custom_layer"))


def test_each_route_compiles_it_and_the_files_load_without_the_package(site: Path, tmp_path: Path) -> None:
    printed = run([str(EXAMPLE / "compile_routes.py"), "compiled"], site, tmp_path)
    lines = printed.splitlines()
    assert lines[0].startswith("onnx            runs by onnxruntime, relative L2")
    assert lines[1].startswith("torch_tensorrt  runs by torch, relative L2")
    assert lines[2].startswith("torch2trt       no: ") and "plans only" in lines[2]
    assert [line.split()[0] for line in lines[3:]] == ["onnx-fp32.safetensors", "torch_tensorrt-fp32.safetensors"]
    assert importlib.util.find_spec("fused_norm") is None  # nor is it installed for the process of this test
    known = load_file(tmp_path / "compiled" / "expected-fp32.safetensors")
    for route in ("onnx", "torch_tensorrt"):
        loaded = ttb.load(tmp_path / "compiled" / f"{route}-fp32.safetensors")
        torch.testing.assert_close(loaded(known["x"]), known["expected"], rtol=1e-4, atol=1e-5)


def test_its_layers_are_in_the_plans_of_both_graph_routes(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    listed, *made = run(["-c", BUILDING], site, tmp_path).splitlines()
    assert listed == "('fused-norm', ('aten', 'tensorrt', 'onnx'))"
    note = "converters made the TensorRT layers of fused_norm::add_rms_norm (1 time)"
    assert made == [f"onnx {note}", f"torch_tensorrt {note}"]
    for route in ("onnx", "torch_tensorrt"):
        assert ttb.load(tmp_path / f"{route}-plan.safetensors").report.where == "a GPU elsewhere, portable"
