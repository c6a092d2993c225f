"""What is known of versions: one table of facts, what they mean, and the command that mends them."""

from __future__ import annotations

import importlib.metadata

import pytest

from torchtrt_bridge.tools import misfits
from torchtrt_bridge.tools.misfits import EVERYTHING, ROUTES, Facts, problems

ALL = {
    "torch": "2.14.1",
    "tensorrt_rtx": "1.6.1.120",
    "torch_tensorrt_rtx": "2.14.0",
    "torch2trt": "0.5.0",
    "onnx": "1.23.2",
    "onnx_ir": "1.1.0",
    "onnxscript": "0.7.2",
    "onnxruntime": "1.32.0",
    **dict.fromkeys(("click", "numpy", "rich", "safetensors", "packaging"), "9"),
}
H100, RTX4090, T4, V100 = ("H100", "sm90"), ("RTX 4090", "sm89"), ("T4", "sm75"), ("V100", "sm70")
REQUIREMENTS = {
    ("torch_tensorrt_rtx", "2.14.0"): ["torch<2.15.0,>=2.14.0", "tensorrt_rtx<1.7.0.0,>=1.6.1.120", "numpy"],
    ("torch_tensorrt_rtx", "2.13.0"): ["torch<2.14.0,>=2.13.0", "tensorrt_rtx<1.6.0.0,>=1.5.0.114"],
    ("torch_tensorrt_rtx", "2.11.0"): ["torch<2.12.0,>=2.11.0", "tensorrt_rtx>=1.3.0.35"],
    ("torch_tensorrt", "2.14.0"): ["torch<2.15.0,>=2.14.0", "tensorrt<11.2,>=11.1"],
}


@pytest.fixture
def found(monkeypatch):
    """``found(**changes)``: the problems of an environment where all fits but the ``changes``."""
    monkeypatch.delenv("TORCHTRT_BRIDGE_TENSORRT", raising=False)
    monkeypatch.setattr(misfits, "pip", lambda *words, action="install": " ".join(["pip", action, *words]))

    def find(changes=None, without=(), **facts):
        versions = {name: v for name, v in {**ALL, **(changes or {})}.items() if name not in without}

        def requires(name):
            if name == "torchtrt_bridge":
                return ["torch>=2.11", "onnx>=1.18", "numpy"]
            return REQUIREMENTS[name, versions[name]]

        monkeypatch.setattr(importlib.metadata, "requires", requires)
        defaults = {"builds": {"tensorrt_rtx": None}, "torch_cuda": "13.0"}
        return problems(Facts(versions, **{**defaults, **facts}))

    return find


def gpu(*gpus):
    return {"gpus": gpus, "driver_cuda": "13.0", "torch_sees_gpu": True}


def test_where_all_fits_nothing_is_said(found):
    assert found() == [] and found(**gpu(H100)) == [] and found(**gpu(RTX4090, T4)) == []


@pytest.mark.parametrize(
    ("changes", "facts", "what", "command", "routes"),
    [
        ({"torch": "2.10.0"}, {}, "needs torch>=2.11, and 2.10.0", "pip install torch>=2.11", EVERYTHING),
        (
            {"torch_tensorrt_rtx": "2.13.0"},
            {},
            "needs torch<2.14.0,>=2.13.0, and 2.14.1 is installed; needs tensorrt_rtx<1.6.0.0",
            "pip install torch-tensorrt-rtx==2.14.*",
            ("torch_tensorrt",),
        ),
        (
            {"tensorrt_rtx": "1.7.1.116"},
            gpu(RTX4090),
            "torch-tensorrt-rtx 2.14.0 needs tensorrt_rtx<1.7.0.0,>=1.6.1.120, and 1.7.1.116 is installed",
            "pip install torch-tensorrt-rtx==2.14.*",
            ("torch_tensorrt",),
        ),
        (
            {"torch": "2.11.0", "torch_tensorrt_rtx": "2.11.0"},
            gpu(H100),
            "torch-tensorrt-rtx 2.11.0 imports with TensorRT for RTX 1.4 only",
            "pip install torch-tensorrt-rtx==2.14.*",
            ("torch_tensorrt",),
        ),
        (
            {"torch": "2.11.0", "torch_tensorrt_rtx": "2.11.0", "tensorrt_rtx": "1.5.0.114"},
            gpu(H100),
            "To keep torch 2.11 on a machine with a GPU: pip install tensorrt-rtx==1.4.0.76",
            "pip install torch-tensorrt-rtx==2.13.*",
            ("torch_tensorrt",),
        ),
        (
            {"tensorrt_rtx": "1.7.1.116"},
            gpu(H100),
            "1.7 refuses GPUs of compute capability 9.0",
            "pip install tensorrt-rtx==1.6.*",
            ROUTES,
        ),
        (
            {"tensorrt_rtx": "1.4.0.76"},
            {},
            "1.4 without a GPU ends with a segmentation fault",
            "pip install tensorrt-rtx==1.6.*",
            ROUTES,
        ),
        ({"tensorrt_rtx": "1.7.1.116"}, {}, "models with attention", "pip install tensorrt-rtx==1.6.*", ()),
        ({"tensorrt_rtx": "1.4.0.76"}, gpu(H100), "to TF32 whatever is asked", "pip install tensorrt-rtx==1.6.*", ()),
        (
            {},
            {**gpu(V100), "builds": {"tensorrt_rtx": "it cannot run what it built"}},
            "TensorRT for RTX needs a GPU of sm75 or later",
            "pip install tensorrt",
            ROUTES,
        ),
        (
            {"tensorrt": "11.1.0"},
            {"builds": {"tensorrt": "no GPU", "tensorrt_rtx": None}},
            "tensorrt 11.1.0 builds no engine here: no GPU. tensorrt_rtx does.",
            "export TORCHTRT_BRIDGE_TENSORRT=tensorrt_rtx",
            ROUTES,
        ),
        (
            {"torch_tensorrt": "2.14.0", "tensorrt": "11.1.0"},
            {},
            "are both installed, and overwrite each other's files",
            "pip uninstall -y torch-tensorrt && pip install --force-reinstall --no-deps torch-tensorrt-rtx==2.14.0",
            ("torch_tensorrt",),
        ),
        (
            {"torch": "2.14.1+cpu"},
            {"driver_cuda": "13.0", "torch_cuda": None},
            "torch is a CPU-only build",
            "pip install --force-reinstall torch==2.14.1 --index-url https://pypi.org/simple",
            (),
        ),
        (
            {},
            {"driver_cuda": "12.4"},
            "built for CUDA 13.0, and the driver knows CUDA 12.4 only",
            "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126",
            (),
        ),
    ],
)
def test_a_misfit(found, changes, facts, what, command, routes):
    answers = found(changes, **facts)
    (problem,) = [problem for problem in answers if what in problem.what]
    assert problem.command == command and problem.routes == routes


@pytest.mark.parametrize(
    ("without", "command", "routes"),
    [
        ("torch", "pip install torch", EVERYTHING),
        ("onnxscript", "pip install onnxscript", ("onnx",)),
        ("onnxruntime", "pip install onnxruntime", ("cpu",)),
        ("torch_tensorrt_rtx", "pip install torch-tensorrt-rtx==2.14.*", ("torch_tensorrt",)),
        (
            "torch2trt",
            "pip install --no-build-isolation git+https://github.com/NVIDIA-AI-IOT/torch2trt",
            ("torch2trt",),
        ),
        ("safetensors", "pip install safetensors", EVERYTHING),
    ],
)
def test_a_missing_package(found, without, command, routes):
    problems = [p for p in found(without=(without,)) if p.command == command]
    assert len(problems) == 1 and problems[0].routes == routes


@pytest.mark.parametrize(
    ("gpus", "installed", "command"),
    [
        ((), "2.14.0", "pip install tensorrt-rtx==1.6.*"),
        ((), None, "pip install tensorrt-rtx>=1.5,<1.7"),
        ((H100,), None, "pip install tensorrt-rtx>=1.5,<1.7"),
        ((RTX4090,), None, "pip install tensorrt-rtx>=1.5"),
    ],
)
def test_no_tensorrt(found, gpus, installed, command):
    without = ("tensorrt_rtx",) if installed else ("tensorrt_rtx", "torch_tensorrt_rtx")
    answers = found(without=without, builds={}, **gpu(*gpus))
    assert [p.command for p in answers if p.what == "No TensorRT is installed."] == [command]


def test_a_tensorrt_that_is_picked_and_not_usable(found, monkeypatch):
    monkeypatch.setenv("TORCHTRT_BRIDGE_TENSORRT", "tensorrt")
    (problem,) = found()
    assert problem.command == "unset TORCHTRT_BRIDGE_TENSORRT" and problem.routes == ROUTES
    monkeypatch.setenv("TORCHTRT_BRIDGE_TENSORRT", "tensorrt_rtx")
    assert found() == []
