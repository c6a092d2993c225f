from __future__ import annotations

import json
import logging
import os
import pathlib
import subprocess
import sys
import threading
import types

import pytest

from torchtrt_bridge.trt import log
from torchtrt_bridge.trt.flavor import NAMES, VARIABLE, Flavor, available, flavor

ROOT = pathlib.Path(__file__).parents[2]

# What `python` in a fresh process says about the TensorRT that it binds.
ASK = """
import json, sys
from torchtrt_bridge.trt.flavor import Unavailable, available, flavor
try:
    bound = flavor()
    print(json.dumps({"name": bound.name, "version": bound.version, "available": available()}))
except Unavailable as error:
    print(json.dumps({"reasons": error.reasons, "message": str(error)}))
"""

FAKE = """
class Builder: pass
class OnnxParser: pass
class ILogger:
    pass
__version__ = "10.99"
"""


def ask(folder: pathlib.Path, picked: str | None = None, code: str = ASK) -> dict:
    """The answer of a process that finds what lies in ``folder`` first."""
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT), environment.get("PYTHONPATH", "")])
    if picked is not None:
        environment[VARIABLE] = picked
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def module(folder: pathlib.Path, name: str, code: str) -> pathlib.Path:
    (folder / f"{name}.py").write_text(code)
    return folder


def test_tensorrt_goes_before_tensorrt_rtx(tmp_path):
    module(tmp_path, "tensorrt", FAKE)
    module(tmp_path, "tensorrt_rtx", FAKE.replace("10.99", "1.99"))
    answer = ask(tmp_path)
    assert answer["name"] == "tensorrt" and answer["version"] == "10.99"
    assert answer["available"] == {"tensorrt": "10.99", "tensorrt_rtx": "1.99"}


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_variable_picks_one(tmp_path, name):
    module(tmp_path, "tensorrt", FAKE)
    module(tmp_path, "tensorrt_rtx", FAKE)
    assert ask(tmp_path, picked=name)["name"] == name


def test_the_environment_variable_never_falls_back(tmp_path):
    module(tmp_path, "tensorrt", "raise OSError('libnvinfer.so.10: cannot open shared object file')")
    module(tmp_path, "tensorrt_rtx", FAKE)
    answer = ask(tmp_path, picked="tensorrt")
    assert list(answer["reasons"]) == ["tensorrt"]
    assert "libnvinfer.so.10" in answer["message"] and VARIABLE in answer["message"]
    assert "pip install tensorrt" in answer["message"] and "tensorrt_rtx" not in answer["message"]


def test_the_environment_variable_must_name_a_flavour(tmp_path):
    answer = ask(tmp_path, picked="tensorrt-rtx")
    assert f"{VARIABLE}=tensorrt-rtx" in answer["message"] and "tensorrt or tensorrt_rtx" in answer["message"]


def test_a_broken_tensorrt_is_passed_over_with_its_reason(tmp_path):
    module(tmp_path, "tensorrt", "raise OSError('libnvinfer.so.10: cannot open shared object file')")
    module(tmp_path, "tensorrt_rtx", FAKE)
    answer = ask(tmp_path)
    assert answer["name"] == "tensorrt_rtx"
    assert "OSError: libnvinfer.so.10: cannot open shared object file" in answer["available"]["tensorrt"]


def test_type_stubs_are_no_tensorrt(tmp_path):
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text("class Builder: ...\nclass OnnxParser: ...\n")
    module(tmp_path, "tensorrt_rtx", FAKE)
    answer = ask(tmp_path)
    assert answer["name"] == "tensorrt_rtx"
    assert "without code" in answer["available"]["tensorrt"]
    # Nor after something else has imported the empty namespace package.
    assert ask(tmp_path, code="import tensorrt" + ASK)["name"] == "tensorrt_rtx"


def test_an_alias_of_tensorrt_rtx_is_not_taken_for_tensorrt(tmp_path):
    module(tmp_path, "tensorrt_rtx", FAKE + "Builder.__module__ = 'tensorrt_rtx_bindings.tensorrt_rtx'")
    alias = "import sys, tensorrt_rtx; sys.modules['tensorrt'] = tensorrt_rtx"
    answer = ask(tmp_path, code=alias + ASK)
    assert answer["name"] == "tensorrt_rtx" and "alias" in answer["available"]["tensorrt"]


def test_nothing_usable_gives_every_reason_and_the_command(tmp_path):
    module(tmp_path, "tensorrt", "raise RuntimeError('wrong CUDA')")
    module(tmp_path, "tensorrt_rtx", "__version__ = '1.0'")
    message = ask(tmp_path)["message"]
    assert "wrong CUDA" in message and "no Builder" in message
    assert "pip install tensorrt or pip install tensorrt_rtx" in message


def test_neither_torch_nor_the_package_is_imported(tmp_path):
    code = f"""
import importlib.util, json, sys
folder = {str(ROOT / "torchtrt_bridge" / "trt")!r}
spec = importlib.util.spec_from_file_location("alone", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["alone"] = importlib.util.module_from_spec(spec)
import alone.builder, alone.child
alone.builder.flavor()
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""
    modules = ask(module(tmp_path, "tensorrt", FAKE), code=code)
    assert "tensorrt" in modules
    assert not {"torch", "numpy", "onnx", "torchtrt_bridge", "errors", "trt"} & set(modules)


def test_one_flavor_and_one_logger_for_all_threads():
    found: list[Flavor] = []
    threads = [threading.Thread(target=lambda: found.append(flavor())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({id(bound) for bound in found}) == 1
    assert available()[flavor().name] == flavor().version


def test_features_of_tensorrt_rtx():
    bound = flavor()
    if bound.name != "tensorrt_rtx":
        pytest.skip("tensorrt_rtx is not in use")
    assert {"sm75", "sm80", "sm86", "sm89", "sm120"} <= set(bound.targets())
    assert bound.targets()["sm89"] == bound.trt.ComputeCapability.SM89
    assert bound.has_compute_capability_targets and bound.has_attention_layer and bound.has_initializer_loading
    assert bound.has_runtime_config and bound.has_runtime_cache
    assert bound.can_build_without_gpu and bound.may_end_the_process
    # The names are there; the work is not done.
    assert hasattr(bound.trt, "ITimingCache") and not bound.has_timing_cache
    assert hasattr(bound.trt.BuilderFlag, "VERSION_COMPATIBLE") and not bound.has_version_compatible
    assert hasattr(bound.trt, "HardwareCompatibilityLevel") and not bound.has_hardware_compatible


@pytest.mark.parametrize(("version", "loses"), [("1.4.0.76", True), ("1.6.1.120", True), ("1.7.1.5", False)])
def test_which_versions_leave_out_the_scales_of_fp8(version, loses):
    assert Flavor("tensorrt_rtx", version, None, None).loses_fp8_scales is loses
    assert not Flavor("tensorrt", "10.9.0", None, None).loses_fp8_scales


@pytest.mark.parametrize("version", [10, 11])
def test_features_of_tensorrt(version):
    """Modules with the names that TensorRT 10 and 11 have."""
    space = types.SimpleNamespace
    old = {"FP16": 1} if version == 10 else {}
    trt = space(
        NetworkDefinitionCreationFlag=space(STRONGLY_TYPED=1) if version == 10 else space(),
        BuilderFlag=space(VERSION_COMPATIBLE=1, TF32=2, **old),
        HardwareCompatibilityLevel=space(AMPERE_PLUS=1),
        IBuilderConfig=space(create_timing_cache=1),
        IRuntimeConfig=space(),
        OnnxParser=space(),
    )
    bound = Flavor("tensorrt", f"{version}.0", trt, None)
    assert bound.has_fp16_flag is bound.has_strongly_typed_flag is (version == 10)
    assert bound.has_timing_cache and bound.has_version_compatible and bound.has_hardware_compatible
    assert bound.has_runtime_config and not bound.has_runtime_cache
    assert not bound.has_attention_layer and not bound.has_initializer_loading
    assert not bound.can_build_without_gpu and not bound.may_end_the_process
    assert bound.targets() == {} and not bound.has_compute_capability_targets


@pytest.mark.parametrize(
    ("severity", "level"),
    [
        ("INTERNAL_ERROR", logging.ERROR),
        ("ERROR", logging.ERROR),
        ("WARNING", logging.WARNING),
        ("INFO", logging.DEBUG),
        ("VERBOSE", logging.DEBUG),
    ],
)
def test_messages_go_to_the_python_logger_by_severity(caplog, capfd, severity, level):
    bound = flavor()
    caplog.set_level(logging.DEBUG, "torchtrt_bridge")
    bound.logger.log(getattr(bound.trt.ILogger.Severity, severity), "100% of it")
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == [
        ("torchtrt_bridge", level, "TensorRT: 100% of it")
    ]
    assert capfd.readouterr().out == ""


def test_verbose_messages_cost_nothing_unless_they_are_wanted(caplog):
    bound = flavor()
    caplog.set_level(logging.INFO, "torchtrt_bridge")
    heard: list[str] = []
    with log.listening(heard.append):
        bound.logger.log(bound.trt.ILogger.Severity.VERBOSE, "a tactic")
        bound.logger.log(bound.trt.ILogger.Severity.INFO, "a layer")
    assert heard == ["INFO: a layer"]


def test_a_listener_keeps_the_last_errors_and_each_warning_once():
    bound = flavor()
    severity = bound.trt.ILogger.Severity
    with log.listening() as messages:
        for i in range(30):
            bound.logger.log(severity.ERROR, f"error {i}")
            bound.logger.log(severity.WARNING, f"warning {i % 2}")
    bound.logger.log(severity.ERROR, "later")
    assert list(messages.errors) == [f"error {i}" for i in range(10, 30)]
    assert list(messages.warnings) == ["warning 0", "warning 1"]


def test_a_failing_log_handler_does_not_reach_tensorrt():
    class Failing(logging.Filter):
        def filter(self, record):
            raise KeyboardInterrupt

    bound = flavor()
    failing = Failing()
    log.logger.addFilter(failing)
    try:
        bound.logger.log(bound.trt.ILogger.Severity.ERROR, "an error")
    finally:
        log.logger.removeFilter(failing)
