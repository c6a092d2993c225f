"""Fixtures and the rule that tests marked ``gpu`` run only where a GPU is."""

from __future__ import annotations

import signal

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU and TensorRT")
    config.addinivalue_line("markers", "slow: takes more than ten seconds on two cores")
    # A shell starts what runs in its background with SIGINT ignored, and so would be every process that a test
    # interrupts.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)
