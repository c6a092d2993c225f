"""The doctor on real environments: what it tells to do makes the route work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

import pytest
import torch

pytest.importorskip("packaging")
from environments import Environment, commands, works  # noqa: E402

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import InvalidOption
from torchtrt_bridge.selection import BACKENDS

ONNX = ("onnx", "onnx-ir", "onnxscript", "onnxruntime")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or torch.cuda.is_available(),
    reason="links TensorRT for RTX from here, and builds as without a GPU",
)


def has(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


@needs_rtx
def test_nothing_installed(tmp_path):
    environment = Environment(tmp_path)
    answer, code = environment.doctor("onnx", "cpu")
    assert code == 1 and not works(answer, "onnx") and not works(answer, "cpu")
    assert {p["version"] for p in answer["packages"]} == {None} and answer["system"]["CUDA of torch"] == "no torch"
    text = environment.run("-m", "torchtrt_bridge", "doctor")  # also where click is what is missing
    assert text.returncode == 1 and "No TensorRT is installed." in text.stdout and text.stderr == ""
    advice = commands(answer, "onnx")
    assert len(advice) == 4
    for command in advice:
        environment.follow(command)
    answer, code = environment.doctor("onnx")
    assert code == 0 and works(answer, "onnx")
    assert "tensorrt_rtx" in answer["routes"][0]["how"] and answer["routes"][0]["problems"] == []


@needs_rtx
def test_onnx_only_and_then_rtx(tmp_path):
    environment = Environment(tmp_path)
    for name in (*ONNX, "torch", "rich", "safetensors", "click", "packaging"):
        environment.link(name)
    answer, code = environment.doctor("onnx", "cpu")
    assert code == 1 and works(answer, "cpu") and "onnxruntime ran a model" in answer["routes"][1]["how"]
    problems = [problem["what"] for problem in answer["routes"][0]["problems"]]
    assert problems == ["No TensorRT is installed."]
    (command,) = commands(answer, "onnx")
    environment.follow(command)
    answer, code = environment.doctor("onnx", "torch_tensorrt")
    assert code == 0 and works(answer, "onnx") and not works(answer, "torch_tensorrt")
    if "torch_tensorrt" in [route.name for route in BACKENDS] and has("torch-tensorrt-rtx"):
        for command in commands(answer, "torch_tensorrt"):
            environment.follow(command)
        answer, code = environment.doctor("torch_tensorrt")
        assert code == 0 and works(answer, "torch_tensorrt"), answer


# torch-tensorrt-rtx 2.11.0 with TensorRT for RTX 1.6.1, as its import ended where both were installed for real
MISFIT = """
import tensorrt_rtx
import torch
selector = tensorrt_rtx.IAlgorithmSelector
"""


@needs_rtx
def test_a_version_pair_that_does_not_fit(tmp_path):
    environment = Environment(tmp_path)
    for name in ("torch", "tensorrt-rtx", *ONNX, "rich", "safetensors", "click", "packaging"):
        environment.link(name)
    requires = ("torch<2.12.0,>=2.11.0", "tensorrt_rtx>=1.3.0.35")
    environment.stand_in("torch-tensorrt-rtx", "2.11.0", "torch_tensorrt", MISFIT, requires)
    answer, code = environment.doctor("torch_tensorrt")
    assert code == 1 and not works(answer, "torch_tensorrt")
    first = answer["routes"][0]["problems"][0]["what"]
    assert first.startswith("torch-tensorrt-rtx 2.11.0 needs torch<2.12.0,>=2.11.0, and 2.")
    (command,) = commands(answer, "torch_tensorrt")
    minor = ".".join(torch.__version__.split(".")[:2])
    assert command.endswith(f"install 'torch-tensorrt-rtx=={minor}.*'")
    if "torch_tensorrt" in [route.name for route in BACKENDS] and has("torch-tensorrt-rtx"):
        environment.follow(command)
        answer, code = environment.doctor("torch_tensorrt")
        assert code == 0 and works(answer, "torch_tensorrt"), answer


def test_broken_packages_are_told_from_missing_ones(tmp_path):
    environment = Environment(tmp_path)
    environment.link("packaging")
    environment.link("click")
    environment.stand_in("torch", "2.13.0", "torch", "raise OSError('libcudart.so.13: cannot open shared object file')")
    environment.stand_in("tensorrt-rtx", "1.5.0.114", "tensorrt_rtx", "import os; os.abort()")
    environment.stand_in("onnx", "1.10.0", "onnx", "raise TypeError('Descriptors cannot be created directly')")
    answer, code = environment.doctor("onnx")
    packages = {package["name"]: package for package in answer["packages"]}
    assert code == 1 and packages["torch"]["version"] == "2.13.0"
    assert packages["torch"]["problem"] == "OSError: libcudart.so.13: cannot open shared object file"
    assert packages["tensorrt-rtx"]["problem"] == "it ends the process (SIGABRT)"
    assert packages["onnx"]["problem"] == "TypeError: Descriptors cannot be created directly"
    advice = commands(answer, "onnx")
    assert any(command.endswith("--force-reinstall torch==2.13.0") for command in advice)
    assert any(command.endswith("--force-reinstall --no-cache-dir tensorrt-rtx==1.5.0.114") for command in advice)
    assert any(command.endswith("--force-reinstall onnx==1.10.0") for command in advice)


def test_an_import_that_ends_its_process_does_not_end_the_caller(tmp_path):
    environment = Environment(tmp_path)
    environment.stand_in("tensorrt", "10.13", "tensorrt", "import os; os.kill(os.getpid(), 11)")
    answer, _ = environment.doctor("onnx")
    assert [p["problem"] for p in answer["packages"] if p["name"] == "tensorrt"] == ["it ends the process (SIGSEGV)"]
    assert any("does not import: it ends the process" in p["what"] for p in answer["routes"][0]["problems"])


def test_a_builder_that_crashes_is_told_from_an_import_that_does(tmp_path):
    environment = Environment(tmp_path)
    code = """
    import os
    __version__ = "1.4.0.76"
    class Severity:
        ERROR = 1
    class ILogger:
        Severity = Severity
    def Builder(logger):
        os.kill(os.getpid(), 11)
    class NetworkDefinitionCreationFlag: pass
    """
    environment.stand_in("tensorrt-rtx", "1.4.0.76", "tensorrt_rtx", code)
    answer, _ = environment.doctor("onnx")
    packages = {package["name"]: package for package in answer["packages"]}
    assert packages["tensorrt-rtx"]["problem"] == "building ends the process (SIGSEGV)"
    problems = [problem["what"] for problem in answer["routes"][0]["problems"]]
    assert "TensorRT for RTX 1.4 without a GPU ends with a segmentation fault when it builds." in problems


def test_this_environment_as_data_text_and_html():
    before = set(sys.modules)
    found = ttb.doctor(["onnx"])
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"tensorrt", "tensorrt_rtx", "onnxruntime", "onnxscript"}
    assert repr(found).startswith("torchtrt_bridge ") and "Routes into TensorRT" in repr(found)
    html = found._repr_html_()
    assert html.count("<table>") >= 3 and torch.__version__.partition("+")[0] in html
    data = found.to_dict()
    assert data["works"] == found.works and data["routes"][0]["name"] == "onnx"
    assert found.route("onnx").works == (found.works)


def test_a_route_that_is_none():
    with pytest.raises(InvalidOption, match="no route 'onx'.*Did you mean 'onnx'"):
        ttb.doctor(["onx"])
    done = subprocess.run([sys.executable, "-m", "torchtrt_bridge", "doctor", "--route", "onx"], capture_output=True)
    assert done.returncode == 2 and b"Traceback" not in done.stderr


@pytest.mark.gpu
def test_on_a_gpu_a_route_is_run_and_compared():
    found = ttb.doctor()
    assert found.works and torch.cuda.get_device_name() in found.system["GPU"]
    assert any("its results are right on cuda" in route.how for route in found.routes)
    pytest.importorskip("click")
    done = subprocess.run([sys.executable, "-m", "torchtrt_bridge", "doctor", "--route", "onnx"], capture_output=True)
    assert done.returncode == 0, done.stderr
