"""Two thousand accidents to saved files, and hostile changes with their digests put right: each is refused by name, or
does no harm. None crashes, none runs code."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

BYTES, MANIFESTS, PROGRAMS = 2000, 600, 300


def test_changed_files_are_refused_or_right(tmp_path, capsys):
    command = [sys.executable, str(pathlib.Path(__file__).with_name("mutating.py")), str(tmp_path), "1"]
    command += map(str, (BYTES, MANIFESTS, PROGRAMS))
    # Lightning sets this where it was imported; torch then loads a library whenever it is asked for GPUs
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_NVML_BASED_CUDA_CHECK"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"ended with {done.returncode} after {lines[-1:]}:\n{done.stderr[-2000:]}"
    found = json.loads(lines[-1])
    with capsys.disabled():
        print(f"\nchanged files: { {kind: {k: v for k, v in c.items() if k != 'wrong'} for kind, c in found.items()} }")
    for kind, count in ("bytes", BYTES), ("manifests", MANIFESTS), ("programs", PROGRAMS):
        outcome = found[kind]
        assert outcome["wrong"] == [], kind
        assert outcome["refused"] + outcome["right"] + outcome["harmless"] == count
        assert outcome["refused"] > count / 2
    assert found["bytes"]["right"] and not found["bytes"]["harmless"]  # what is not refused is the very same module
    assert found["manifests"]["harmless"]
