"""Every row of the table, on the CPU and on the GPU; and the page that is written from it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from dropin_table import PAGE, Case, Net, Row, page, rows

import torchtrt_bridge as ttb

DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=DEVICES)
def compiled(request: pytest.FixtureRequest) -> tuple[Net, ttb.TRTModule, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Net().eval().to(request.param), torch.randn(4, 3, 6, 6, device=request.param)
    with torch.no_grad():
        model.norm.running_var.uniform_(0.5, 2)
    return model, ttb.compile(model, (x,), dynamic_batch=(0, 4, 8)), x


@pytest.fixture
def case(compiled: tuple[Net, ttb.TRTModule, torch.Tensor], tmp_path: Path) -> Iterator[Case]:
    model, fast, x = compiled
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # eager's part of the comparison
    with mock.patch.dict(os.environ):  # Lightning sets variables when it is imported
        yield Case(copy.deepcopy(model), copy.deepcopy(fast), x.clone(), tmp_path)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_row(row: Row, case: Case) -> None:
    row.check(case)


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python tests/dropin/dropin_table.py"


def test_the_table_is_long_enough_and_names_each_row_once() -> None:
    names = [row.name for row in rows()]
    assert len(names) >= 60 and len(set(names)) == len(names)
