"""ttb.doctor(): what is installed here, which routes work, and the command that mends each that does not.

Nothing is guessed that can be tried: each route builds a model of two layers, in a child process, and where there is a
GPU the result is run and compared. What is known of versions (:mod:`.misfits`) says why, and what to do.
"""

from __future__ import annotations

import dataclasses
import html
import importlib.machinery
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..cache import VARIABLE, Cache
from ..errors import InvalidOption, nearest
from ..version import __version__
from .misfits import EVERYTHING, ROUTES, RTX, Facts, Problem, problems
from .probes import DRIVER, IMPORT, ROUTE, TENSORRT, TORCH, Answer, Question, ask

_SHOWN = """
    torch tensorrt tensorrt_rtx torch_tensorrt torch_tensorrt_rtx torch2trt onnx onnx_ir onnxscript onnxruntime
    safetensors nvidia_ml_py
""".split()
_IMPORTED = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")
_FLAVOURS = ("tensorrt", RTX)


@dataclasses.dataclass(frozen=True)
class Package:
    """One package: its version (None where it is not installed), and why it is not usable (None where it is)."""

    name: str
    version: str | None
    problem: str | None = None

    def __str__(self) -> str:
        return (self.version or "not installed") + (f": {self.problem}" if self.problem else "")


@dataclasses.dataclass(frozen=True)
class Route:
    """Whether a route works here. ``how`` says what was built; ``problems`` why not, with the commands that mend it,
    in order."""

    name: str
    works: bool
    how: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def commands(self) -> tuple[str, ...]:
        """What to run, in order."""
        return tuple(dict.fromkeys(problem.command for problem in self.problems if problem.command))

    def lines(self) -> list[str]:
        if self.works:
            return [self.name, f"works: {self.how}"]
        return [self.name, "does not work:", *(line for problem in self.problems for line in problem.lines())]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What :func:`doctor` found. Prints as a table, in notebooks too.

    Args:
        system: Python, driver, CUDA, GPUs, cache: texts.
        packages: what is installed and what is not.
        routes: the routes into TensorRT, and ``"cpu"``, the stand-in that runs models without it.
        cautions: what is not in order and stops no route.
    """

    system: Mapping[str, str]
    packages: tuple[Package, ...]
    routes: tuple[Route, ...]
    cautions: tuple[Problem, ...] = ()

    @property
    def works(self) -> bool:
        """Whether at least one route into TensorRT works."""
        return any(route.works for route in self.routes if route.name in ROUTES)

    def route(self, name: str) -> Route:
        """The route called ``name``."""
        return next(route for route in self.routes if route.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"works": self.works, **dataclasses.asdict(self), "system": dict(self.system)}

    def __repr__(self) -> str:
        lines = [f"torchtrt_bridge {__version__}"]
        for title, rows in self._tables():
            lines += ["", title]
            width = max((len(row[0]) for row in rows), default=0)
            for key, *texts in rows:
                lines += [f"  {'' if index else key:<{width}}  {text}" for index, text in enumerate(texts)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = []
        for title, rows in self._tables():
            left = "style='text-align:left;vertical-align:top;white-space:pre-wrap'"
            cells = "".join(
                f"<tr><th {left}>{html.escape(key)}</th><td {left}>{html.escape(chr(10).join(texts))}</td></tr>"
                for key, *texts in rows
            )
            parts.append(f"<b>{html.escape(title)}</b><table>{cells}</table>")
        return "".join(parts)

    def _tables(self) -> list[tuple[str, list[list[str]]]]:
        packages = [[package.name, str(package)] for package in self.packages]
        tables = [
            ("This machine", [[key, value] for key, value in self.system.items()]),
            ("Packages", packages),
            ("Routes into TensorRT", [route.lines() for route in self.routes if route.name in ROUTES]),
            ("Without TensorRT", [route.lines() for route in self.routes if route.name not in ROUTES]),
        ]
        cautions = ["", *(line for caution in self.cautions for line in caution.lines())]
        return [table for table in tables if table[1]] + ([("Take care", [cautions])] if self.cautions else [])


def doctor(routes: Sequence[str] = EVERYTHING) -> Diagnosis:
    """What is installed here, which routes into TensorRT work, and how to mend those that do not.

    Takes some ten seconds: each route that has its packages builds a small model in a process of its own. This process
    imports nothing and is left as it was. Works without torch, too.

    Args:
        routes: which to look at; ``"cpu"`` is what runs models without TensorRT.

    Raises:
        InvalidOption: there is no such route.
    """
    for name in routes:
        if name not in EVERYTHING:
            known = ", ".join(EVERYTHING)
            raise InvalidOption(f"There is no route {name!r}; there is {known}.{nearest(name, EVERYTHING)}")
    versions = _installed()
    answers = ask(_questions(versions))
    for name in _FLAVOURS:
        if "version" in answers.get(name, Answer()).data:
            versions.setdefault(name, answers[name].data["version"])
    facts = _facts(versions, answers)
    found = problems(facts)
    stopped = {name: [problem for problem in found if name in problem.routes] for name in routes}
    sensible = [name for name, known in stopped.items() if not any(problem.missing for problem in known)]
    tried = ask({name: Question(ROUTE, name) for name in sensible})
    results = {name: _route(name, tried.get(name), known) for name, known in stopped.items()}
    cautions = [problem for problem in found if not problem.routes]
    if (trouble := Cache().problem()) is not None and os.environ.get(VARIABLE, "").strip().lower() != "off":
        cautions.append(Problem(f"The cache is not used: {trouble}."))
    return Diagnosis(
        system=_system(facts, answers),
        packages=tuple(
            Package(name.replace("_", "-"), versions.get(name), facts.broken.get(name) or facts.builds.get(name))
            for name in _SHOWN
        ),
        routes=tuple(results[name] for name in routes),
        cautions=tuple(cautions),
    )


def _installed() -> dict[str, str]:
    """The version of every distribution, by normalized name; of a module without metadata, ``"?"``."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # what comes first on the path is what is imported
            versions.setdefault(re.sub(r"[-_.]+", "_", name).lower(), distribution.version)
    if "torch2trt" not in versions and _is_there("torch2trt"):
        versions["torch2trt"] = "?"
    return versions


def _is_there(module: str) -> bool:
    """Whether the path has it. What this process imported under that name says nothing: Torch-TensorRT puts TensorRT
    for RTX there."""
    return importlib.machinery.PathFinder.find_spec(module) is not None


def _questions(versions: Mapping[str, str]) -> dict[str, Question]:
    modules = [name for name in _IMPORTED if name in versions]
    return {
        **({"torch": Question(TORCH)} if "torch" in versions else {}),
        **({"driver": Question(DRIVER)} if "nvidia_ml_py" in versions else {}),
        **{name: Question(TENSORRT, name) for name in _FLAVOURS if _is_there(name)},
        **{name: Question(IMPORT, name) for name in modules},
    }


def _facts(versions: Mapping[str, str], answers: Mapping[str, Answer]) -> Facts:
    torch, driver = answers.get("torch", Answer()), answers.get("driver", Answer())
    gpus = torch.data.get("gpus") or driver.data.get("gpus") or []
    broken = {name: str(answer.problem) for name, answer in answers.items() if answer.problem and name != "driver"}
    flavours = {name: answers[name].data for name in _FLAVOURS if name in answers}
    return Facts(
        versions=versions,
        broken=broken,
        builds={name: data["builds"] for name, data in flavours.items() if "builds" in data},
        gpus=tuple((gpu[0], gpu[1]) for gpu in gpus),
        driver_cuda=driver.data.get("cuda") or ("?" if _kernel_driver() else None),
        torch_cuda=torch.data.get("cuda"),
        torch_sees_gpu=bool(torch.data.get("available")),
    )


def _route(name: str, answer: Answer | None, known: list[Problem]) -> Route:
    if answer is not None and answer.problem is None:
        made = answer.data
        plan, where = made["runtime"] == "tensorrt", made["where"]
        did = f"{made['tensorrt']} built an engine" if plan else f"{made['runtime']} ran a model"
        return Route(name, True, f"{did} {'for' if 'elsewhere' in where else 'and its results are right on'} {where}")
    if answer is not None and answer.problem is not None:
        known = [*known, Problem(answer.problem)]
    return Route(name, False, "", tuple(known))


def _system(facts: Facts, answers: Mapping[str, Answer]) -> dict[str, str]:
    driver, torch = answers.get("driver", Answer()).data, answers.get("torch", Answer()).data
    rows = {
        "Python": f"{platform.python_version()} ({sys.executable})",
        "platform": f"{platform.system()} {platform.machine()}",
        "driver": _driver(driver, facts),
        "CUDA of torch": facts.torch_cuda or ("none: a CPU-only build" if torch else "no torch"),
        "GPU": ", ".join(f"{name} ({sm})" for name, sm in facts.gpus) or "none",
    }
    if facts.gpus and torch and not facts.torch_sees_gpu:
        rows["GPU"] += "; torch does not see it"
    rows["cache"] = Cache().folder or "off"
    return rows


def _driver(driver: Mapping[str, Any], facts: Facts) -> str:
    if driver:
        return f"{driver['driver']}, for CUDA {driver['cuda']} and earlier"
    kernel = _kernel_driver()
    if kernel is not None:
        return f"{kernel} (nvidia-ml-py would say more)"
    return "there; nvidia-ml-py would say which" if facts.torch_sees_gpu else "none"


def _kernel_driver() -> str | None:
    """The version of NVIDIA's kernel module; None where it is not loaded."""
    try:
        text = pathlib.Path("/proc/driver/nvidia/version").read_text("utf-8", "replace")
    except OSError:
        return None
    match = re.search(r"\b(\d{3}\.\d+(\.\d+)?)\b", text)
    return match[1] if match else "?"
