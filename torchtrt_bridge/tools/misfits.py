"""What is known not to work together, and the command that mends it. Rules over facts; nothing is imported or asked.

Each rule is a function of :class:`Facts` that answers with :class:`Problem` s. What a version of one package needs of
another is read from its own metadata; the rest was found by trying, and says so.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping

ROUTES = ("torch_tensorrt", "onnx", "torch2trt")
EVERYTHING = (*ROUTES, "cpu")
RTX = "tensorrt_rtx"
_NEEDED = ("click", "numpy", "rich", "safetensors")
_ONNX_PACKAGES = ("onnx", "onnx_ir", "onnxscript")
_TORCH2TRT = "git+https://github.com/NVIDIA-AI-IOT/torch2trt"
_RTX_THAT_WORKS = "tensorrt-rtx>=1.5,<1.7"
# torch-tensorrt-rtx 2.11's metadata lets every RTX since 1.3 in; those from 2.12 on name the one that they need.
_TORCH_TENSORRT_FOR_RTX = {"1.4": "2.12", "1.5": "2.13", "1.6": "2.14"}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that does not work or does not fit.

    Args:
        what: what, in a sentence.
        command: the shell command that mends it; empty where no command does.
        routes: the routes that it stops, ``"cpu"`` among them; empty where it is a caution.
        missing: something is not there or does not import, so that there is no sense in trying those routes.
    """

    what: str
    command: str = ""
    routes: tuple[str, ...] = ()
    missing: bool = False

    def lines(self) -> list[str]:
        return [f"- {self.what}", *([f"    {self.command}"] if self.command else [])]


@dataclasses.dataclass(frozen=True)
class Facts:
    """This machine and this environment.

    Args:
        versions: every installed distribution that matters, by normalized name (``torch_tensorrt_rtx``).
        broken: modules that are installed and do not import, with the reason.
        builds: for each TensorRT module that imports: None where it builds an engine here, else why not.
        gpus: name and compute capability (``"sm90"``) of each GPU that is here.
        driver_cuda: the CUDA version of the driver; None where there is none, ``"?"`` where it is not known.
        torch_cuda: the CUDA version that torch was built for; None for a CPU-only torch.
        torch_sees_gpu: whether ``torch.cuda.is_available()``.
    """

    versions: Mapping[str, str]
    broken: Mapping[str, str] = dataclasses.field(default_factory=dict)
    builds: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    gpus: tuple[tuple[str, str], ...] = ()
    driver_cuda: str | None = None
    torch_cuda: str | None = None
    torch_sees_gpu: bool = False

    def minor(self, name: str) -> str:
        """``"2.14"`` of the installed ``name``; ``""`` where it is not installed."""
        return ".".join(re.findall(r"\d+", self.versions.get(name, ""))[:2])

    @property
    def torch_tensorrt(self) -> str | None:
        """Which distribution of Torch-TensorRT is installed."""
        return next((name for name in ("torch_tensorrt_rtx", "torch_tensorrt") if name in self.versions), None)


def problems(facts: Facts) -> list[Problem]:
    """All that is known to be wrong, the worst first."""
    found = [problem for rule in _RULES for problem in rule(facts)]
    return sorted(found, key=lambda problem: -len(problem.routes))


def pip(*arguments: str, action: str = "install") -> str:
    """The pip command of this very interpreter, for a shell."""
    beside = os.path.join(os.path.dirname(sys.executable), "pip")
    found = shutil.which("pip")
    own = found is not None and os.path.realpath(found) == os.path.realpath(beside)
    command = ["pip"] if own else [sys.executable, "-m", "pip"]
    return shlex.join([*command, action, *arguments])


def _torch(facts: Facts) -> Iterator[Problem]:
    if "torch" not in facts.versions:
        yield Problem("torch is not installed.", pip("torch"), EVERYTHING, missing=True)
    elif "torch" in facts.broken:
        again = pip("--force-reinstall", f"torch=={_public(facts.versions['torch'])}")
        what = f"torch is installed and does not import: {facts.broken['torch']}."
        yield Problem(what, again, EVERYTHING, missing=True)


def _gpu(facts: Facts) -> Iterator[Problem]:
    if facts.torch_sees_gpu or facts.driver_cuda is None or "torch" not in facts.versions or "torch" in facts.broken:
        return
    wheel = f"torch=={_public(facts.versions['torch'])}"
    if facts.torch_cuda is None:
        what = "torch is a CPU-only build, and there is an NVIDIA driver: models run and are built as without a GPU."
        yield Problem(what, pip("--force-reinstall", wheel, "--index-url", "https://pypi.org/simple"))
    elif facts.driver_cuda != "?" and _numbers(facts.driver_cuda) < _numbers(facts.torch_cuda)[:1]:
        index = "https://download.pytorch.org/whl/cu126"
        what = f"torch is built for CUDA {facts.torch_cuda}, and the driver knows CUDA {facts.driver_cuda} only."
        yield Problem(f"{what} Update the driver, or:", pip("--force-reinstall", "torch", "--index-url", index))
    elif os.environ.get("CUDA_VISIBLE_DEVICES", None) in ("", "-1"):
        yield Problem("CUDA_VISIBLE_DEVICES hides the GPU.", "unset CUDA_VISIBLE_DEVICES")


def _tensorrt(facts: Facts) -> Iterator[Problem]:
    usable = [name for name, reason in facts.builds.items() if reason is None]
    installed = [name for name in ("tensorrt", RTX) if name in facts.versions or name in facts.builds]
    picked = os.environ.get("TORCHTRT_BRIDGE_TENSORRT")
    for name in installed:
        if name in facts.broken:
            again = f"{name.replace('_', '-')}=={facts.versions[name]}" if name in facts.versions else _rtx_for(facts)
            what = f"{name} is installed and does not import: {facts.broken[name]}."
            stops = () if usable else ROUTES
            yield Problem(what, pip("--force-reinstall", "--no-cache-dir", again), stops, missing=True)
        elif facts.builds.get(name) is not None:
            yield _does_not_build(facts, name, usable, str(facts.builds[name]))
    if not installed:
        yield Problem("No TensorRT is installed.", pip(_rtx_for(facts)), ROUTES, missing=True)
    if picked and picked not in usable:
        stops = ROUTES if usable else ()
        what = f"TORCHTRT_BRIDGE_TENSORRT={picked} picks a TensorRT that is not usable here."
        yield Problem(what, "unset TORCHTRT_BRIDGE_TENSORRT", stops)


def _does_not_build(facts: Facts, name: str, usable: list[str], reason: str) -> Problem:
    """A TensorRT that imports and builds nothing here."""
    what = f"{name} {facts.versions.get(name, '')} builds no engine here: {reason}."
    if name == "tensorrt" and usable:
        if os.environ.get("TORCHTRT_BRIDGE_TENSORRT") == RTX:
            return Problem(what)
        return Problem(f"{what} {RTX} does.", f"export TORCHTRT_BRIDGE_TENSORRT={RTX}", ROUTES)
    if name == "tensorrt" and not facts.gpus:
        needs = "The full TensorRT builds only where there is a GPU."
        command = f"{pip(_rtx_for(facts))} && export TORCHTRT_BRIDGE_TENSORRT={RTX}"
        return Problem(f"{what} {needs}", command, ROUTES)
    if name == RTX and any(_numbers(sm[2:]) < (75,) for _, sm in facts.gpus):
        return Problem(f"{what} TensorRT for RTX needs a GPU of sm75 or later.", pip("tensorrt"), ROUTES)
    return Problem(what, pip(_rtx_for(facts)), () if usable else ROUTES)


def _rtx_versions(facts: Facts) -> Iterator[Problem]:
    """What was found by trying, on an H100, an H200 and without a GPU."""
    minor, here = facts.minor(RTX), [sm for _, sm in facts.gpus]
    if minor == "1.7" and "sm90" in here:
        what = "TensorRT for RTX 1.7 refuses GPUs of compute capability 9.0 (H100, H200)."
        yield Problem(what, pip(_rtx_for(facts)), () if "tensorrt" in facts.builds else ROUTES)
    elif minor == "1.7" and not here:
        what = "TensorRT for RTX 1.7 without a GPU ends with a segmentation fault on models with attention."
        yield Problem(what, pip(_rtx_for(facts)))
    elif minor == "1.4" and not here:
        what = "TensorRT for RTX 1.4 without a GPU ends with a segmentation fault when it builds."
        yield Problem(what, pip(_rtx_for(facts)), () if "tensorrt" in facts.builds else ROUTES)
    elif minor == "1.4":
        what = "TensorRT for RTX 1.4 rounds fp32 products to TF32 whatever is asked, which verification refuses."
        yield Problem(what, pip(_rtx_for(facts)))


def _onnx(facts: Facts) -> Iterator[Problem]:
    missing = [name for name in _ONNX_PACKAGES if name not in facts.versions]
    if missing:
        names = [name.replace("_", "-") for name in missing]
        yield Problem(f"Not installed: {', '.join(names)}.", pip(*names), ("onnx",), missing=True)
    for name in (*_ONNX_PACKAGES, "onnxruntime"):
        if name in facts.broken:
            again = pip("--force-reinstall", f"{name.replace('_', '-')}=={facts.versions[name]}")
            stops = ("cpu",) if name == "onnxruntime" else ("onnx",)
            yield Problem(f"{name} is installed and does not import: {facts.broken[name]}.", again, stops, missing=True)
    if not any(name in facts.versions for name in ("onnxruntime", "onnxruntime_gpu")):
        yield Problem("onnxruntime is not installed.", pip("onnxruntime"), ("cpu",), missing=True)


def _torch_tensorrt(facts: Facts) -> Iterator[Problem]:
    name = facts.torch_tensorrt
    stops = ("torch_tensorrt",)
    if name is None:
        full = facts.builds.get("tensorrt", "") is None
        wanted = "torch-tensorrt" if full else "torch-tensorrt-rtx"
        yield Problem("Torch-TensorRT is not installed.", pip(_for_torch(wanted, facts)), stops, missing=True)
        return
    if {"torch_tensorrt", "torch_tensorrt_rtx"} <= set(facts.versions):
        other = "torch-tensorrt" if facts.builds.get(RTX, "") is None else "torch-tensorrt-rtx"
        kept = "torch-tensorrt-rtx" if other == "torch-tensorrt" else "torch-tensorrt"
        again = pip("--force-reinstall", "--no-deps", f"{kept}=={facts.versions[kept.replace('-', '_')]}")
        remove = pip("-y", other, action="uninstall")
        what = "torch-tensorrt and torch-tensorrt-rtx are both installed, and overwrite each other's files."
        yield Problem(what, f"{remove} && {again}", stops)
    dashed = name.replace("_", "-")
    version = facts.versions[name]
    what = f"{dashed} {version} "
    unmet = [text for other, text, _ in _unmet(name, facts) if other in ("torch", "tensorrt", RTX)]
    if unmet:
        yield Problem(f"{what}{'; '.join(unmet)}.", pip(_for_torch(dashed, facts)), stops)
    elif name == "torch_tensorrt_rtx" and facts.minor(name) == "2.11" and facts.minor(RTX) != "":
        # seen: tensorrt_rtx/plugin imports a module that no wheel ships; without it, only 1.4 has IAlgorithmSelector
        which = "imports with TensorRT for RTX 1.4 only, and not with the one that pip installs"
        keep = (
            f" To keep torch 2.11 on a machine with a GPU: {pip('tensorrt-rtx==1.4.0.76')}, then remove the folder"
            " tensorrt_rtx/plugin. Otherwise:"
        )
        newer = _TORCH_TENSORRT_FOR_RTX.get(facts.minor(RTX), "2.14")
        yield Problem(f"{what}{which}.{keep}", pip(f"{dashed}=={newer}.*"), stops)


def _torch2trt(facts: Facts) -> Iterator[Problem]:
    if "torch2trt" not in facts.versions:
        what = "torch2trt is not installed (it is in no package index)."
        yield Problem(what, pip("--no-build-isolation", _TORCH2TRT), ("torch2trt",), missing=True)


def _own(facts: Facts) -> Iterator[Problem]:
    """What this package itself needs: its metadata says it, and, where that is not installed, this list."""
    looked_after = ("torch", "onnxruntime", *_ONNX_PACKAGES)
    missing = dict.fromkeys(name for name in _NEEDED if name not in facts.versions)
    unfit = []
    for name, text, requirement in _unmet("torchtrt_bridge", facts):
        if name in facts.versions:
            unfit.append((text, requirement))
        elif name not in looked_after:
            missing[name] = None
    if missing:
        names = [name.replace("_", "-") for name in missing]
        yield Problem(f"Not installed, and needed: {', '.join(names)}.", pip(*names), EVERYTHING)
    if unfit:
        command = pip(*(requirement for _, requirement in unfit))
        yield Problem(f"torchtrt_bridge {'; '.join(text for text, _ in unfit)}.", command, EVERYTHING)


_RULES: tuple[Callable[[Facts], Iterator[Problem]], ...] = (
    _torch,
    _tensorrt,
    _rtx_versions,
    _own,
    _onnx,
    _torch_tensorrt,
    _torch2trt,
    _gpu,
)


def _rtx_for(facts: Facts) -> str:
    """The TensorRT for RTX to install here: what Torch-TensorRT for RTX asks for, where that is installed."""
    wanted = {minor: rtx for rtx, minor in _TORCH_TENSORRT_FOR_RTX.items()}.get(facts.minor("torch_tensorrt_rtx"))
    if wanted is not None and wanted != "1.4":
        return f"tensorrt-rtx=={wanted}.*"
    hopper = any(sm == "sm90" for _, sm in facts.gpus)
    return _RTX_THAT_WORKS if hopper or not facts.gpus else "tensorrt-rtx>=1.5"


def _for_torch(name: str, facts: Facts) -> str:
    """The Torch-TensorRT that fits the torch that is installed; it brings its own TensorRT."""
    minor = facts.minor("torch")
    if name == "torch-tensorrt-rtx" and _numbers(minor) <= (2, 11):
        return f"{name}==2.14.*"  # 2.11 imports with no TensorRT for RTX that pip installs; this brings a newer torch
    return f"{name}=={minor}.*" if minor else name


def _unmet(name: str, facts: Facts) -> Iterator[tuple[str, str, str]]:
    """What the metadata of the distribution ``name`` asks for and is not here: whose, a text, and the requirement."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        normalized = re.sub(r"[-_.]+", "_", requirement.name).lower()
        found = facts.versions.get(normalized)
        if found is None:
            yield normalized, f"needs {requirement.name}{requirement.specifier}, which is not installed", line
        elif not requirement.specifier.contains(_public(found), prereleases=True):
            yield normalized, f"needs {requirement.name}{requirement.specifier}, and {found} is installed", line


def _public(version: str) -> str:
    return version.partition("+")[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
