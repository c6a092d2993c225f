"""Every recipe in ``examples/`` runs, calls the compiled module, and gets from it the numbers that eager gives."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils.data import DataLoader

import torchtrt_bridge as ttb

FOLDER = Path(__file__).parents[2] / "examples"
RECIPES = {  # the packages that each needs, and calls of a compiled module that it makes at least, in this process
    "accelerate_evaluation": (["accelerate"], 4),
    "dataloader_workers": ([], 3),
    "hf_pipeline": (["transformers", "tokenizers"], 3),
    "hf_trainer": (["transformers", "accelerate"], 16),
    "lightning_validation": (["lightning"], 8),
    "timm_validation": (["timm", "PIL"], 4),
    "torchmetrics_evaluation": (["torchmetrics"], 14),
}
ALLOWED = {"fp32": (1e-3, 1e-4), "fp16": (5e-2, 2e-2)}  # relative, absolute
PERCENT = {"fp32": 1e-4, "fp16": 3.5}  # absolute: two of 60 images may change sides


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """What runs each call of a compiled module, as it is made."""
    made: list[str] = []

    def note(module: torch.nn.Module, *_: Any) -> None:
        if isinstance(module, ttb.TRTModule):
            made.append(module.report.runtime)

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    yield made
    handle.remove()


def check(name: str, precision: str, calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packages, at_least = RECIPES[name]
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # trainers leave files
    monkeypatch.syspath_prepend(FOLDER)  # a spawned worker, too, imports the recipe by name
    true_fp32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # of eager's convolutions on a GPU
    with mock.patch.dict(os.environ), true_fp32:  # trainers set variables
        eager, compiled = importlib.import_module(name).main(precision)
    relative, absolute = ALLOWED[precision]
    assert eager and list(compiled) == list(eager)
    for key, value in eager.items():
        allowed = PERCENT[precision] if key in ("top1", "top5") else absolute
        assert compiled[key] == pytest.approx(value, rel=relative, abs=allowed), key
    assert all(math.isfinite(value) for value in eager.values()) and any(eager.values())
    assert len(calls) >= at_least


@pytest.mark.parametrize("name", RECIPES)
def test_numbers_equal_eagers(
    name: str, calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check(name, "fp32", calls, monkeypatch, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", RECIPES)
def test_numbers_equal_eagers_on_the_gpu(
    name: str, precision: str, calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check(name, precision, calls, monkeypatch, tmp_path)
    assert set(calls) == {"tensorrt"}


def test_a_forked_worker_makes_an_engine_of_its_own_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    signals = importlib.import_module("dataloader_workers").Signals
    model = torch.nn.Linear(24, 4).eval()
    fast = ttb.compile(model, torch.randn(2, 24), device="cpu", dynamic_batch=(1, 2, 2))
    fast(torch.randn(2, 24))  # so that it has threads, which do not come along
    loader = DataLoader(signals(10, fast), batch_size=5, num_workers=1, multiprocessing_context="fork", timeout=120)
    with torch.no_grad():
        expected = model(torch.stack([signals(10)[i] for i in range(10)]))
    torch.testing.assert_close(torch.cat(list(loader)), expected)


@pytest.mark.gpu
def test_a_forked_worker_on_the_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    signals = importlib.import_module("dataloader_workers").Signals
    fast = ttb.compile(torch.nn.Linear(24, 4).eval().cuda(), torch.randn(2, 24).cuda(), dynamic_batch=(1, 2, 2))
    loader = DataLoader(signals(10, fast, "cpu"), num_workers=1, multiprocessing_context="fork", timeout=120)
    with pytest.raises(ttb.errors.UsedAfterFork, match="spawn"):
        list(loader)


def test_every_recipe_is_listed_here_and_in_the_readme() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"minilm_demo", "run_saved"}
    assert scripts == set(RECIPES)
    readme = (FOLDER.parent / "README.md").read_text("utf-8")
    assert scripts <= set(re.findall(r"examples/(\w+)\.py", readme))
