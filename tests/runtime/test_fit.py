"""A plan that does not fit is refused before TensorRT sees a byte of it, with what fits and how to rebuild."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from saved import artifact

import torchtrt_bridge as ttb
from torchtrt_bridge.errors import EngineMismatch
from torchtrt_bridge.runtime import fit
from torchtrt_bridge.runtime.artifact import to_tensors

MADE = {"flavour": "tensorrt_rtx", "tensorrt": "1.6.1.120", "target": "sm89", "version_compatible": False}
GPU = torch.device("cuda", 0)


@dataclasses.dataclass
class FakeFlavor:
    """A TensorRT that this machine does not have."""

    name: str = "tensorrt_rtx"
    version: str = "1.6.1.120"
    named: tuple[str, ...] = ("sm75", "sm80", "sm86", "sm89", "sm120")

    @property
    def has_compute_capability_targets(self) -> bool:
        return bool(self.named)

    def targets(self) -> dict[str, str]:
        return {name: name for name in self.named}


FULL = FakeFlavor("tensorrt", "10.16.1.11", ())


@pytest.fixture
def gpu(monkeypatch):
    """The GPU that torch finds: call it with its compute capability."""

    def choose(major: int, minor: int, name: str = "NVIDIA Something") -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)

    choose(8, 9, "NVIDIA L4")
    return choose


def check(flavor=None, **made):
    fit.check({**MADE, **made}, flavor or FakeFlavor(), GPU)


def test_the_same_everything_fits(gpu, caplog):
    check()
    check(FULL, flavour="tensorrt", tensorrt="10.16.1.11")
    assert caplog.records == []


def test_another_flavour_names_both_and_the_package(gpu):
    with pytest.raises(EngineMismatch, match=r"built by tensorrt_rtx 1\.6\.1\.120; this process uses tensorrt 10") as e:
        check(FULL)
    assert "Install tensorrt-rtx==1.6.1.120" in str(e.value) and "TORCHTRT_BRIDGE_TENSORRT=tensorrt_rtx" in str(e.value)
    assert "rebuild()" in str(e.value)


@pytest.mark.parametrize("version", ["1.7.1.3", "1.5.0.1", "2.6.1.120", "11.6.1"])
def test_another_version_names_both(gpu, version):
    message = (
        rf"built by tensorrt_rtx {version}; this process has 1\.6\.1\.120.*Install tensorrt-rtx=={version}.*rebuild"
    )
    with pytest.raises(EngineMismatch, match=message):
        check(tensorrt=version)


@pytest.mark.parametrize("version", ["1.6.0.5", "1.6.9"])
def test_a_patch_release_fits(gpu, version):
    check(tensorrt=version)


def test_version_compatible_means_later_versions_and_never_earlier_ones(gpu):
    made = {"flavour": "tensorrt", "tensorrt": "10.9.0", "version_compatible": True}
    for later in ("10.9.1", "10.16.1.11", "11.0.0"):
        check(FakeFlavor("tensorrt", later, ()), **made)
    for earlier in ("10.8.3", "8.9.9"):
        with pytest.raises(EngineMismatch, match="its own or an earlier version only"):
            check(FakeFlavor("tensorrt", earlier, ()), **made)


@pytest.mark.parametrize(("target", "here"), [("sm89", (8, 6)), ("sm120", (8, 9)), ("sm75", (12, 0)), ("sm89", (7, 0))])
def test_another_gpu_names_both(gpu, target, here):
    gpu(*here, name="NVIDIA Other")
    named = f"built for {target}; this GPU is sm{here[0]}{here[1]} \\(NVIDIA Other\\).*compile the model again"
    with pytest.raises(EngineMismatch, match=named):
        check(target=target)


@pytest.mark.parametrize("here", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 1)])
def test_a_portable_plan_fits_from_ampere_on(gpu, here):
    gpu(*here)
    check(target="portable")


@pytest.mark.parametrize("here", [(7, 5), (7, 0), (6, 1)])
def test_a_portable_plan_does_not_fit_before_ampere(gpu, here):
    gpu(*here, name="NVIDIA Old")
    with pytest.raises(EngineMismatch, match=rf"from sm80 on; this one is sm{here[0]}{here[1]} \(NVIDIA Old\)"):
        check(target="portable")


def test_hopper_is_warned_of_and_let_through(gpu, caplog):
    gpu(9, 0, name="NVIDIA H100")
    with caplog.at_level(logging.WARNING, "torchtrt_bridge"):
        check()
    assert "built for sm89" in caplog.text and "sm90 (NVIDIA H100)" in caplog.text


def test_full_tensorrt_knows_no_neighbours(gpu):
    gpu(9, 0)
    with pytest.raises(EngineMismatch, match="built for sm89; this GPU is sm90"):
        check(FULL, flavour="tensorrt", tensorrt="10.16.1.11")


def test_provenance_that_says_nothing_does_not_fit(gpu):
    with pytest.raises(EngineMismatch):
        fit.check({}, FakeFlavor(), GPU)
    with pytest.raises(EngineMismatch):
        fit.check({**MADE, "target": None}, FakeFlavor(), GPU)
    with pytest.raises(EngineMismatch):
        fit.check({**MADE, "tensorrt": "unknown"}, FakeFlavor(), GPU)


@pytest.mark.parametrize(
    ("made", "here", "message"),
    [
        ({"flavour": "tensorrt", "tensorrt": "10.16.1"}, (8, 9), "neither loads the other's plans"),
        ({"tensorrt": "1.4.0.1"}, (8, 9), "loads plans of its own version only"),
        ({"target": "sm86"}, (8, 9), "built for sm86; this GPU is sm89"),
        ({"target": "portable"}, (7, 5), "runs on GPUs from sm80 on"),
    ],
    ids=["flavour", "version", "GPU", "portable"],
)
def test_no_byte_of_a_plan_that_does_not_fit_reaches_tensorrt(gpu, monkeypatch, made, here, message):
    pytest.importorskip("tensorrt_rtx")
    seen: list[object] = []

    def deserialize(self, *args, **kwargs):
        seen.append(self)

    monkeypatch.setattr("torchtrt_bridge.trt.engine.Engine.__init__", deserialize)
    monkeypatch.setattr("torchtrt_bridge.trt.targets.installed", FakeFlavor)
    for name, value in (("is_available", True), ("current_device", 0), ("is_initialized", True)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    gpu(*here)
    tensors = to_tensors(artifact(provenance={**MADE, **made}))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: self)
    module = ttb.TRTModule()
    with pytest.raises(EngineMismatch, match=message):
        module.load_state_dict(tensors)
    assert seen == [] and module.state_dict() == {}
