"""What servers ask of a file: it loads wherever its tensors are mapped to, and says nothing of who made it where."""

from __future__ import annotations

import dataclasses
import getpass
import importlib.util
import os
import pathlib
import re
import socket
import sys

import pytest
import torch

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import InvalidFile

MODEL = """
import torch

class Confidential(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x):
        return torch.tanh(self.layer(x)) + self.offset, self.offset
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model whose class, working directory and home have names that no file may hold."""
    folder = tmp_path / "confidential-folder"
    folder.mkdir()
    (folder / "confidential_models.py").write_text(MODEL)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "confidential-home"))
    spec = importlib.util.spec_from_file_location("confidential_models", folder / "confidential_models.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "confidential_models", module)
    spec.loader.exec_module(module)
    return module.Confidential().eval()


def places() -> set[bytes]:
    """Names of this machine, its user and its folders."""
    names = {os.getcwd(), str(pathlib.Path(torch.__file__).parents[1]), str(pathlib.Path(ttb.__file__).parents[1])}
    names |= {os.path.expanduser("~"), "confidential-", sys.prefix}
    names |= {socket.gethostname(), getpass.getuser()}
    return {name.encode() for name in names if len(name) > 5}  # "/usr" and "root" say nothing of a place


def assert_names_no_place(module, folder):
    module.save(folder / "saved.safetensors")
    torch.save(module.state_dict(), folder / "saved.pth")
    torch.save(module, folder / "saved.pt")
    for path in folder.glob("saved.*"):
        data = path.read_bytes()
        assert not [name for name in places() if name in data], path.name
        assert re.search(rb'"torch":"2\.\d+', data)  # versions are there


def test_a_file_holds_versions_and_no_names_of_places(model, tmp_path):
    x = torch.randn(2, 8)
    build = ttb.BuildOptions(timing_cache=tmp_path / "confidential-folder" / "timings")  # noted: no effect here
    for precision in ("fp32", "bf16"):
        options = {"source": True, "dynamic_batch": (1, 2, 4), "build": build}
        assert_names_no_place(ttb.compile(model, x, precision, **options), tmp_path)


def test_a_plan_holds_versions_and_no_names_of_places(model, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    plan = ttb.build(model, torch.randn(2, 8), "fp16", source=True)
    assert_names_no_place(plan, tmp_path)
    assert plan.provenance["tensorrt"] and plan.provenance["target"] == "portable"


def test_reasons_in_a_report_are_saved_without_folders(tmp_path):
    fast = ttb.compile(torch.nn.Linear(8, 4).eval(), torch.randn(2, 8))
    reason = f"OSError: {tmp_path}/lib/x.so.1: no such file ('{tmp_path}/y.py'); see https://example.com/a/b, layer a/b"
    fast.set_report(dataclasses.replace(fast.report, notes=(reason,)))
    fast.save(tmp_path / "saved.safetensors")
    assert str(tmp_path).encode() not in (tmp_path / "saved.safetensors").read_bytes()
    (note,) = ttb.load(tmp_path / "saved.safetensors").report.notes
    assert note == "OSError: .../x.so.1: no such file ('.../y.py'); see https://example.com/a/b, layer a/b"
    assert fast.report.notes == (reason,)  # here it says where


@pytest.mark.gpu
def test_a_plan_for_this_gpu_names_the_gpu_and_no_place(model, tmp_path):
    fast = ttb.compile(model.cuda(), torch.randn(2, 8).cuda(), "fp16", source=True)
    assert_names_no_place(fast, tmp_path)
    assert fast.provenance["gpu"] == torch.cuda.get_device_name()


@pytest.mark.parametrize(
    "options",
    [
        {"map_location": "cpu"},
        {"map_location": torch.device("cpu")},
        {"map_location": {"cuda:0": "cpu"}},
        {"map_location": lambda storage, location: storage},
        {"map_location": "cpu", "mmap": True},
    ],
    ids=["a name", "a device", "a mapping", "a function", "mapped into memory"],
)
def test_map_location(tmp_path, options):
    model, x = torch.nn.Linear(8, 4).eval(), torch.randn(2, 8)
    fast = ttb.compile(model, x)
    torch.save(fast.state_dict(), tmp_path / "state.pth")
    torch.save(fast, tmp_path / "module.pth")
    again = ttb.TRTModule()
    again.load_state_dict(torch.load(tmp_path / "state.pth", **options))
    for loaded in (again, torch.load(tmp_path / "module.pth", **options)):
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidFile, match="no dense tensor"):
        ttb.TRTModule().load_state_dict(torch.load(tmp_path / "state.pth", map_location="meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("location", ["cpu", "cuda", "cuda:0"])
def test_map_location_of_a_plan(tmp_path, location):
    model, x = torch.nn.Linear(8, 4).eval().cuda(), torch.randn(2, 8).cuda()
    fast = ttb.compile(model, x, "fp16")
    torch.save(fast.state_dict(), tmp_path / "state.pth")
    torch.save(fast, tmp_path / "module.pth")
    again = ttb.TRTModule()
    again.load_state_dict(torch.load(tmp_path / "state.pth", map_location=location))
    for loaded in (again, torch.load(tmp_path / "module.pth", map_location=location)):
        assert loaded.device == x.device
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-2, atol=1e-2)
