"""The example package: pip installs it, every route takes its operator, and what was saved loads without it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from installed import EXAMPLE, install, run
from safetensors.torch import load_file

import torchtrt_bridge as ttb

PROGRAM = """
import sys, torch, torchtrt_bridge as ttb
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import compile_routes

print(*[(r.source, r.forms) for r in ttb.converter.list() if r.target.name == "fused_norm::add_rms_norm"])
for route, outcome in compile_routes.main(Path("compiled")).items():
    print(route, outcome)
for route in ("onnx", "torch_tensorrt"):
    plan = ttb.build(compile_routes.Block().eval(), torch.randn(2, 8, 64), "fp16", backend=route, hybrid=False)
    plan.save(f"{route}-plan.safetensors")
    print(route, *[note for note in plan.report.notes if "TensorRT layers" in note])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program ran, with the package installed."""
    folder = tmp_path_factory.mktemp("custom_layer")
    printed = run(["-c", PROGRAM, str(EXAMPLE)], install(folder), folder)
    (folder / "printed.txt").write_text(printed)
    return folder


def test_the_converter_is_found_and_each_route_compiles_the_operator(folder: Path) -> None:
    listed, *outcomes = (folder / "printed.txt").read_text().splitlines()[:4]
    assert listed == "('fused-norm', ('aten', 'tensorrt', 'onnx'))"
    assert outcomes[0].startswith("onnx runs by onnxruntime, relative L2")
    assert outcomes[1].startswith("torch_tensorrt runs by torch, relative L2")
    assert outcomes[2].startswith("torch2trt no: ") and "plans only" in outcomes[2]


def test_what_was_saved_loads_where_the_package_is_not_installed(folder: Path) -> None:
    printed = run([str(EXAMPLE / "load_elsewhere.py"), "compiled"], None, folder).splitlines()
    assert [line.split()[0] for line in printed] == ["onnx-fp32.safetensors", "torch_tensorrt-fp32.safetensors"]
    assert importlib.util.find_spec("fused_norm") is None  # nor is it for the process of this test
    known = load_file(folder / "compiled" / "expected-fp32.safetensors")
    for route in ("onnx", "torch_tensorrt"):
        loaded = ttb.load(folder / "compiled" / f"{route}-fp32.safetensors")
        torch.testing.assert_close(loaded(known["x"]), known["expected"], rtol=1e-4, atol=1e-5)
        assert ttb.load(folder / f"{route}-plan.safetensors").report.where == "a GPU elsewhere, portable"


def test_its_layers_are_in_the_plans_of_both_graph_routes(folder: Path) -> None:
    made = (folder / "printed.txt").read_text().splitlines()[4:]
    note = "converters made the TensorRT layers of fused_norm::add_rms_norm (1 time)"
    assert made == [f"onnx {note}", f"torch_tensorrt {note}"]
