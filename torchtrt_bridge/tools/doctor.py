"""ttb.doctor(): what is installed here, which routes work, and the command that mends each that does not.

Nothing is guessed that can be tried: each route builds a model of two layers, in a child process, and where there is a
GPU the result is run and compared. What is known of versions (:mod:`.misfits`) says why, and what to do.
"""

from __future__ import annotations

import dataclasses
import html
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import sys
from collections.abc import Mapping
from typing import Any

from ..cache import VARIABLE, Cache
from ..version import __version__
from .misfits import ROUTES, RTX, Facts, Problem, problems
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


@dataclasses.dataclass(frozen=True)
class Route:
    """Whether a route works here. ``how`` says what was built; ``reasons`` why not; ``commands`` what to run, in
    order."""

    name: str
    works: bool
    how: str = ""
    reasons: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What :func:`doctor` found. Prints as a table, in notebooks too.

    Args:
        system: Python, driver, CUDA, GPUs, cache: texts.
        packages: what is installed and what is not.
        routes: the routes into TensorRT.
        cpu: the stand-in that runs models on the CPU.
        cautions: what is not in order and stops no route.
    """

    system: Mapping[str, str]
    packages: tuple[Package, ...]
    routes: tuple[Route, ...]
    cpu: Route
    cautions: tuple[Problem, ...] = ()

    @property
    def works(self) -> bool:
        """Whether at least one route into TensorRT works."""
        return any(route.works for route in self.routes)

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
            cells = "".join(
                f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(key)}</th><td style='text-align:left'>"
                + "<br>".join(html.escape(text) for text in texts)
                + "</td></tr>"
                for key, *texts in rows
            )
            parts.append(f"<b>{html.escape(title)}</b><table>{cells}</table>")
        return "".join(parts)

    def _tables(self) -> list[tuple[str, list[list[str]]]]:
        packages = [[p.name, f"{p.version or 'not installed'}{f': {p.problem}' if p.problem else ''}"] for p in self.packages]
        tables = [
            ("This machine", [[key, value] for key, value in self.system.items()]),
            ("Packages", packages),
            ("Routes into TensorRT", [_route_lines(route) for route in self.routes]),
            ("Without TensorRT", [_route_lines(self.cpu)]),
        ]
        cautions = [
            [f"{index}.", caution.what, *([f"  {caution.command}"] if caution.command else [])]
            for index, caution in enumerate(self.cautions, 1)
        ]
        return tables + ([("Take care", cautions)] if cautions else [])


def doctor() -> Diagnosis:
    """What is installed here, which routes into TensorRT work, and how to mend those that do not.

    Takes some ten seconds: each route that has its packages builds a small model in a process of its own. This process
    imports nothing and is left as it was. Works without torch, too.
    """
    versions = _installed()
    answers = ask(_questions(versions))
    for name in _FLAVOURS:
        if "version" in answers.get(name, Answer()).data:
            versions.setdefault(name, answers[name].data["version"])
    facts = _facts(versions, answers)
    found = problems(facts)
    stopped = {name: [problem for problem in found if name in problem.routes] for name in ROUTES}
    tried = ask(
        {
            **{name: Question(ROUTE, name) for name in ROUTES if not any(map(_is_missing, stopped[name]))},
            **({"cpu": Question(ROUTE, "cpu")} if "torch" in versions and "torch" not in facts.broken else {}),
        }
    )
    routes = tuple(_route(name, tried.get(name), stopped[name]) for name in ROUTES)
    works = {route.name for route in routes if route.works}
    cautions = [problem for problem in found if not problem.routes or works & set(problem.routes)]
    if (trouble := Cache().problem()) is not None and os.environ.get(VARIABLE, "").strip().lower() != "off":
        cautions.append(Problem(f"The cache is not used: {trouble}."))
    return Diagnosis(
        system=_system(facts, answers),
        packages=tuple(
            Package(name.replace("_", "-"), versions.get(name), facts.broken.get(name) or facts.builds.get(name))
            for name in _SHOWN
        ),
        routes=routes,
        cpu=_route("cpu", tried.get("cpu"), [p for p in found if p.routes == ROUTES and "torch " in p.what]),
        cautions=tuple(cautions),
    )


def _installed() -> dict[str, str]:
    """The version of every distribution, by normalized name; of a module without metadata, ``"?"``."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # what comes first on the path is what is imported
            versions.setdefault(re.sub(r"[-_.]+", "_", name).lower(), distribution.version)
    if "torch2trt" not in versions and importlib.util.find_spec("torch2trt") is not None:
        versions["torch2trt"] = "?"
    return versions


def _questions(versions: Mapping[str, str]) -> dict[str, Question]:
    modules = [name for name in _IMPORTED if name in versions]
    return {
        **({"torch": Question(TORCH)} if "torch" in versions else {}),
        **({"driver": Question(DRIVER)} if "nvidia_ml_py" in versions else {}),
        **{name: Question(TENSORRT, name) for name in _FLAVOURS if importlib.util.find_spec(name) is not None},
        **{name: Question(IMPORT, name) for name in modules},
    }


def _facts(versions: Mapping[str, str], answers: Mapping[str, Answer]) -> Facts:
    torch, driver = answers.get("torch", Answer()), answers.get("driver", Answer())
    gpus = torch.data.get("gpus") or driver.data.get("gpus") or []
    broken = {name: str(answer.problem) for name, answer in answers.items() if answer.problem and name != "driver"}
    return Facts(
        versions=versions,
        broken=broken,
        builds={name: answers[name].data["builds"] for name in _FLAVOURS if "builds" in answers.get(name, Answer()).data},
        gpus=tuple((gpu[0], gpu[1]) for gpu in gpus),
        driver_cuda=driver.data.get("cuda") or ("?" if _kernel_driver() else None),
        torch_cuda=torch.data.get("cuda"),
        torch_sees_gpu=bool(torch.data.get("available")),
    )


def _is_missing(problem: Problem) -> bool:
    """Whether there is no sense in trying: something is not there, or does not import."""
    return "installed" in problem.what and "is installed." not in problem.what


def _route(name: str, answer: Answer | None, known: list[Problem]) -> Route:
    if answer is not None and answer.problem is None:
        made = answer.data
        engine = f"{made['tensorrt']} built an engine" if made["runtime"] == "tensorrt" else f"{made['runtime']} ran a model"
        where = f"for {made['where']}" if "elsewhere" in made["where"] else f"on {made['where']}, its results compared"
        return Route(name, True, f"{engine} {where}")
    reasons = [problem.what for problem in known]
    if answer is not None and answer.problem is not None:
        reasons.append(answer.problem)
    commands = dict.fromkeys(problem.command for problem in known if problem.command)
    return Route(name, False, "", tuple(reasons), tuple(commands))


def _route_lines(route: Route) -> list[str]:
    if route.works:
        return [route.name, f"works: {route.how}"]
    commands = [f"  {command}" for command in route.commands]
    return [route.name, "does not work:", *(f"- {reason}" for reason in route.reasons), *commands]


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
    return "none"


def _kernel_driver() -> str | None:
    """The version of NVIDIA's kernel module; None where it is not loaded."""
    try:
        text = pathlib.Path("/proc/driver/nvidia/version").read_text("utf-8", "replace")
    except OSError:
        return None
    match = re.search(r"\b(\d{3}\.\d+(\.\d+)?)\b", text)
    return match[1] if match else "?"
