"""Python environments made in a tenth of a second: real virtual environments whose packages are links to those that
the tests run with, and to stand-ins for those that are absent. What pip would install is linked instead."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import subprocess
import textwrap
import venv

from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[2]


class Environment:
    """A virtual environment with this package's own source, and nothing else."""

    def __init__(self, folder: pathlib.Path):
        venv.create(folder, symlinks=True, with_pip=False)
        (self.site,) = folder.glob("lib/python3*/site-packages")
        self.python = str(folder / "bin" / "python")
        package = self.site / "torchtrt_bridge"
        package.mkdir()
        for entry in (ROOT / "torchtrt_bridge").iterdir():
            (package / entry.name).symlink_to(entry)
        (package / "converters").symlink_to(ROOT / "converters")

    def link(self, requirement: str) -> None:
        """What ``pip install requirement`` brings, from the environment of the tests.

        Raises:
            AssertionError: the version there is not what is asked for.
        """
        wanted = Requirement(requirement)
        found = importlib.metadata.distribution(wanted.name)
        assert wanted.specifier.contains(found.version, prereleases=True), f"{requirement}: {found.version} is here"
        self.remove(wanted.name)
        for root in {pathlib.PurePath(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            source = pathlib.Path(str(found.locate_file(root)))
            if source.exists() and not (self.site / root).exists():
                (self.site / root).symlink_to(source)
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                self._link_needed(needed)

    def _link_needed(self, needed: Requirement) -> None:
        name = _normal(needed.name)
        if name.startswith(("nvidia_", "cuda_")):  # one folder holds all of CUDA's libraries
            source = pathlib.Path(str(importlib.metadata.distribution("torch").locate_file("nvidia")))
            if source.exists() and not (self.site / "nvidia").exists():
                (self.site / "nvidia").symlink_to(source)
        elif not self.holds(name):
            self.link(str(needed))

    def holds(self, name: str) -> bool:
        """Whether a distribution of that name is linked."""
        return any(_is_of(path, name) for path in self.site.glob("*.dist-info"))

    def remove(self, name: str) -> None:
        """What ``pip uninstall`` removes: the distribution's links, or its stand-in."""
        for path in [path for path in self.site.glob("*.dist-info") if _is_of(path, name)]:
            record = path / "RECORD"
            roots = {line.split(",")[0].split("/")[0] for line in record.read_text().splitlines() if line}
            for root in roots - {"..", "__pycache__"}:
                target = self.site / root
                if target.is_symlink():
                    target.unlink()
                elif target.exists():
                    subprocess.run(["rm", "-r", str(target)], check=True)

    def stand_in(self, name: str, version: str, module: str, code: str, requires: tuple[str, ...] = ()) -> None:
        """A package of that name and version, whose module is ``code``."""
        (self.site / module).mkdir()
        (self.site / module / "__init__.py").write_text(textwrap.dedent(code))
        folder = f"{name.replace('-', '_')}-{version}.dist-info"
        (self.site / folder).mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        (self.site / folder / "METADATA").write_text("\n".join(lines) + "\n")
        (self.site / folder / "RECORD").write_text(f"{module}/__init__.py,,\n{folder}/METADATA,,\n{folder}/RECORD,,\n")

    def follow(self, command: str) -> None:
        """Do what one of the doctor's commands says."""
        for part in command.split(" && "):
            words = shlex.split(part)
            assert words[0] == "pip" or words[:3] == [self.python, "-m", "pip"], command
            words = words[words.index("pip") + 1 :]
            requirements = [word for word in words[1:] if not word.startswith("-")]
            assert words[0] in ("install", "uninstall") and requirements, command
            for requirement in requirements:
                if words[0] == "install":
                    self.link(requirement)
                else:
                    self.remove(requirement)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """``python ARGUMENTS`` in the environment."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TORCHTRT"))}
        return subprocess.run(
            [self.python, *arguments],
            env={**environment, **variables},
            cwd=self.site.parent,
            capture_output=True,
            text=True,
        )

    def doctor(self, *routes: str, **variables: str) -> tuple[dict, int]:
        """What the command answers, and its exit code."""
        options = [word for route in routes for word in ("--route", route)]
        if self.holds("click"):
            done = self.run("-m", "torchtrt_bridge", "doctor", "--json", *options, **variables)
            assert done.returncode in (0, 1), done.stderr
            return json.loads(done.stdout), done.returncode
        code = (
            "import json, sys, torchtrt_bridge\n"
            f"d = torchtrt_bridge.doctor({routes!r} or torchtrt_bridge.tools.misfits.EVERYTHING)\n"
            "assert not [m for m in sys.modules if m.startswith(('tensorrt', 'torch_tensorrt', 'onnx'))]\n"
            "print(json.dumps([d.to_dict(), 1 - d.works]))"
        )
        done = self.run("-c", "import torchtrt_bridge.tools.misfits\n" + code, **variables)
        assert done.returncode == 0, done.stderr
        answer, exit_code = json.loads(done.stdout)
        return answer, exit_code


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _is_of(metadata: pathlib.Path, name: str) -> bool:
    """Whether a folder ``NAME-VERSION.dist-info`` belongs to the distribution ``name``."""
    return _normal(metadata.name.partition("-")[0]) == _normal(name)


def commands(answer: dict, route: str) -> list[str]:
    """What the doctor tells to run, in order."""
    (found,) = [entry for entry in answer["routes"] if entry["name"] == route]
    return list(dict.fromkeys(problem["command"] for problem in found["problems"] if problem["command"]))


def works(answer: dict, route: str) -> bool:
    (found,) = [entry for entry in answer["routes"] if entry["name"] == route]
    return found["works"]
