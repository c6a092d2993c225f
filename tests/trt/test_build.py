from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import networks
import numpy as np
import onnx
import pytest
import torch

from torchtrt_bridge.errors import BackendUnavailable, BuildCrashed, BuildFailed, InvalidOption
from torchtrt_bridge.options import BuildOptions
from torchtrt_bridge.trt import isolation
from torchtrt_bridge.trt.build import build
from torchtrt_bridge.trt.flavor import VARIABLE, Flavor, flavor
from torchtrt_bridge.trt.request import Failure, Initializer, NoGpu, Request

ROOT = pathlib.Path(__file__).parents[2]
bound = flavor()
pytestmark = pytest.mark.skipif(not bound.can_build_without_gpu, reason="this TensorRT builds only on a GPU")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Every build leaves the folder for temporary files empty, and no process."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
    assert children(folder) == []


def children(folder: pathlib.Path) -> list[int]:
    """The processes whose command line names ``folder``."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in command:
                found.append(int(entry.name))
    return found


def mlp_request(**settings) -> Request:
    return Request(networks.mlp().SerializeToString(), networks.mlp_profile(), **settings)


@pytest.fixture(scope="module")
def large() -> Request:
    """A network that takes several seconds to build."""
    return Request(networks.convolutions(400).SerializeToString())


# -- here or in a child ------------------------------------------------------------------------------------------------


def test_the_child_builds_what_this_process_would():
    here = build(mlp_request(target="sm89"), isolate=False)
    child = build(mlp_request(target="sm89"), isolate=True)
    assert bytes(here.data) == bytes(child.data) and not child.data.readonly
    for name in ("flavor", "version", "target", "layers", "warnings"):
        assert getattr(here, name) == getattr(child, name)


def commands(monkeypatch):
    """The command lines of the children that are started from here on."""
    started = []
    command = isolation.command
    monkeypatch.setattr(isolation, "command", lambda folder: started.append(command(folder)) or started[-1])
    return started


def test_without_a_gpu_the_build_is_isolated(monkeypatch):
    started = commands(monkeypatch)
    assert build(mlp_request(), on_gpu=False).data.nbytes and len(started) == 1


def test_with_a_gpu_it_is_too_unless_asked_not_to(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(isolation, "environment", lambda bound, device: seen.append(device) or os.environ.copy())
    started = commands(monkeypatch)
    assert build(mlp_request(target="sm89"), on_gpu=True).data.nbytes
    assert seen == [3] and len(started) == 1
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    assert build(mlp_request(target="sm89"), on_gpu=True, isolate=False).data.nbytes and len(started) == 1


def test_with_a_gpu_weights_that_the_disk_has_no_room_for_stay_here(monkeypatch):
    started = commands(monkeypatch)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1 << 28))
    model, weights = networks.without_weights(networks.mlp())
    initializers = tuple(Initializer(n, w.ctypes.data, w.nbytes, owner=w) for n, w in weights.items())
    request = Request(model, networks.mlp_profile(), initializers, target="sm89")
    assert build(request, on_gpu=True).data.nbytes and not started
    assert build(request, on_gpu=False).data.nbytes and len(started) == 1


@pytest.mark.gpu
def test_a_gpu_is_there_in_the_child(monkeypatch):
    started = commands(monkeypatch)
    assert build(mlp_request()).data.nbytes and len(started) == 1


def test_weights_from_memory_and_from_files_reach_the_child(tmp_path, monkeypatch):
    inline = bytes(build(mlp_request(), isolate=True).data)
    model, weights = networks.without_weights(networks.mlp())
    initializers = tuple(Initializer(n, w.ctypes.data, w.nbytes, owner=w) for n, w in weights.items())
    assert bytes(build(Request(model, networks.mlp_profile(), initializers), isolate=True).data) == inline
    onnx.save_model(networks.mlp(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    monkeypatch.chdir(tmp_path)
    assert bytes(build(Request("m.onnx", networks.mlp_profile()), isolate=True).data) == inline


def run_child(folder: pathlib.Path, request: Request, more: str = "") -> subprocess.CompletedProcess[str]:
    """The child by hand, with ``more`` code at its end, and its standard output and error together."""
    folder.mkdir()
    isolation.write_job(request, folder)
    python, flag, option, code, *rest = isolation.command(folder)
    reading, writing = os.pipe()  # open for as long as the child runs, as its caller would keep it
    try:
        return subprocess.run(
            [python, flag, option, code + more, *rest],
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    finally:
        os.close(reading)
        os.close(writing)


def test_the_child_imports_neither_torch_nor_this_package(tmp_path):
    more = "\nprint('modules:', *sys.modules, flush=True)"
    output = run_child(tmp_path / "job", mlp_request(), more).stdout
    modules = output.partition("modules:")[2].split()
    assert bound.name in modules and "torchtrt_bridge_trt.builder" in modules
    assert not {"torch", "numpy", "torchtrt_bridge", "multiprocessing"} & set(modules)


def test_the_child_looks_for_modules_where_this_process_does(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f"{bound.name}.py").write_text("raise OSError('the one that comes first in sys.path')")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    monkeypatch.setenv(VARIABLE, bound.name)
    with pytest.raises(BuildFailed, match="the one that comes first in sys.path"):
        build(mlp_request(), isolate=True)


def test_files_that_lie_about_do_not_get_in_the_childs_way(tmp_path, monkeypatch):
    for name in ("json", "ctypes", "importlib", "trt", "flavor"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert build(mlp_request(), isolate=True).num_layers > 0


def test_the_job_is_private(temporary, monkeypatch):
    modes = []

    def command(folder):
        modes.append(folder.stat().st_mode & 0o777)
        return original(folder)

    original = isolation.command
    monkeypatch.setattr(isolation, "command", command)
    build(mlp_request(), isolate=True)
    assert modes == [0o700]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [False, True])
def test_a_refused_model_is_a_failed_build_that_names_the_nodes(isolate, caplog):
    caplog.set_level(logging.ERROR, "torchtrt_bridge")
    with pytest.raises(BuildFailed, match=r"enc\.1/frob \[Frobnicate\]") as failed:
        build(Request(networks.unknown_operators().SerializeToString()), isolate=isolate)
    assert isinstance(failed.value.__cause__, Failure)
    assert [problem.node for problem in failed.value.__cause__.problems] == ["enc.1/frob", "enc.2/twiddle"]
    assert "enc.1/frob" in caplog.text  # the message of TensorRT itself, on its way to the log


def test_every_option_of_the_build_is_one_of_the_request():
    settings = dataclasses.asdict(BuildOptions(workspace=1 << 30, optimization_level=2, tf32=True))
    # of the run, of the gate, of where it is built, of one route
    for other in ("kernel_specialization", "minimum_share", "isolate", "torch_tensorrt"):
        del settings[other]
    request = mlp_request(**settings)
    assert (request.workspace, request.optimization_level, request.tf32) == (1 << 30, 2, True)
    assert build(request, isolate=True).num_layers > 0


def test_an_option_that_cannot_be_honoured_starts_no_child(monkeypatch):
    monkeypatch.setattr(isolation, "command", None)
    with pytest.raises(InvalidOption, match="timing_cache"):
        build(mlp_request(timing_cache="timings"), isolate=True)


def test_a_tensorrt_that_needs_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(Flavor, "can_build_without_gpu", False)
    with pytest.raises(BackendUnavailable, match="builds only where there is a GPU") as error:
        build(mlp_request(), on_gpu=False)
    assert isinstance(error.value.__cause__, NoGpu)


def test_no_tensorrt_is_a_missing_backend(tmp_path):
    code = """
from torchtrt_bridge.errors import BackendUnavailable
from torchtrt_bridge.trt.build import Request, build
try:
    build(Request(b""))
except BackendUnavailable as error:
    print(error)
"""
    (tmp_path / "tensorrt.py").write_text("raise OSError('no libnvinfer')")
    environment = {**os.environ, VARIABLE: "tensorrt", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "no libnvinfer" in answer.stdout and "pip install tensorrt" in answer.stdout


# -- progress, messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [False, True])
def test_progress_is_told_on_the_callers_thread(isolate):
    told = []
    build(mlp_request(), isolate=isolate, progress=lambda *event: told.append((*event, threading.get_ident())))
    assert {thread for *_, thread in told} == {threading.get_ident()}
    assert told[0][:2] == ("Parsing the model", 0.0) and told[-1][1] == 1.0


@pytest.mark.parametrize("isolate", [False, True])
def test_an_error_in_the_progress_callback_ends_the_build(isolate, large):
    def progress(phase, fraction):
        if phase != "Parsing the model":
            raise ZeroDivisionError

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        build(large, isolate=isolate, progress=progress)
    assert time.monotonic() - began < 3


def test_the_childs_debug_messages_are_forwarded_when_wanted(caplog):
    caplog.set_level(logging.DEBUG, "torchtrt_bridge")
    build(mlp_request(), isolate=True)
    assert any("layers.0/matmul" in record.getMessage() for record in caplog.records if record.levelname == "DEBUG")


# -- interrupts and crashes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("delay", [0.2, 1.0])
def test_ctrl_c_ends_a_build_within_two_seconds(large, isolate, delay):
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            build(large, isolate=isolate)
        assert time.monotonic() - began < delay + 2
    finally:
        timer.join()
        for thread in threading.enumerate():
            if thread.name == "torchtrt_bridge-build":
                thread.join(30)
                assert not thread.is_alive()


def test_ctrl_c_while_the_child_is_being_started_leaves_no_child(temporary, monkeypatch):
    """It is there, and ``Popen`` has not returned it: what the stop button of a notebook met on a busy machine."""
    popen, began = subprocess.Popen, []

    def interrupted(*args, **settings):
        began.append(popen(*args, **settings))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        return began[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(mlp_request(), isolate=True)
    assert began[0].returncode == -signal.SIGKILL and not pathlib.Path(f"/proc/{began[0].pid}").exists()


def dies_by(code: str):
    return lambda folder: [sys.executable, "-c", f"import os, sys, signal; {code}", str(folder)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"was ended by SIGSEGV.*fault inside TensorRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was ended by SIGKILL.*out of memory"),
        ("os._exit(3)", "ended with exit code 3"),
        ("print('{\"plan', end='', flush=True); os.abort()", "was ended by SIGABRT"),
    ],
)
def test_a_crash_of_the_child_is_an_error_with_its_last_words(monkeypatch, code, expected):
    monkeypatch.setattr(isolation, "command", dies_by(f"print('last words', file=sys.stderr, flush=True); {code}"))
    with pytest.raises(BuildCrashed, match=expected) as crashed:
        build(mlp_request(), isolate=True)
    assert "last words" in str(crashed.value)


def test_a_crash_in_the_middle_of_a_build(monkeypatch):
    """The child is killed when TensorRT is at work; what TensorRT said until then is quoted."""
    original = isolation.command

    def command(folder):
        python, flag, option, code, *rest = original(folder)
        dying = """
import os, signal
import torchtrt_bridge_trt.child as child
child.Reports.progress = lambda self, phase, _: "Pars" in phase or os.kill(os.getpid(), signal.SIGSEGV)
child.main(job)
"""
        return [python, flag, option, code.replace("\nmain(job)", dying), *rest]

    monkeypatch.setattr(isolation, "command", command)
    with pytest.raises(BuildCrashed, match="SIGSEGV") as crashed:
        build(mlp_request(), isolate=True)
    assert "INFO: " in str(crashed.value)


def test_a_python_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(isolation, "command", lambda folder: ["/no/such/python", str(folder)])
    with pytest.raises(BuildFailed, match="/no/such/python"):
        build(mlp_request(), isolate=True)


def test_the_child_never_outlives_its_caller(tmp_path):
    folder = tmp_path / "orphan"
    folder.mkdir()
    (tmp_path / "large.onnx").write_bytes(networks.convolutions(400).SerializeToString())
    code = f"""
from torchtrt_bridge.trt.build import Request, build
request = Request({str(tmp_path / "large.onnx")!r})
build(request, isolate=True, on_gpu=False, progress=lambda *_: print("on", flush=True))
"""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    caller = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert caller.stdout is not None and caller.stdout.readline() == b"on\n"
    assert len(children(folder)) == 1
    caller.kill()
    caller.wait()
    caller.stdout.close()
    deadline = time.monotonic() + 5
    while children(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children(folder) == []


def test_builds_from_several_threads(tmp_path):
    plans = {}

    def work(i):
        plans[i] = build(mlp_request(), isolate=bool(i % 2), on_gpu=False)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({bytes(plan.data) for plan in plans.values()}) == 1 and len(plans) == 4
    assert np.frombuffer(plans[0].data, dtype=np.uint8).any()
