"""``examples/custom_layer`` as pip installs it, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "custom_layer"


def install(folder: Path) -> Path:
    """Install the example there. The sources are copied first: setuptools leaves files beside them."""
    shutil.copytree(EXAMPLE, folder / "source")
    options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check".split()
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site")]
    subprocess.run([*command, str(folder / "source")], check=True)
    return folder / "site"


def run(arguments: list[str], site: Path | None, folder: Path) -> str:
    """What a new process of Python prints, with ``site`` among its paths, or without the example's package."""
    paths = [*([str(site)] if site is not None else []), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=900
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout
