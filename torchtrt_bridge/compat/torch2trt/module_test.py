"""The list of test modules that files of converters add to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class ModuleTest:
    """One entry: ``module_fn()`` makes the module that ``torch2trt`` is to be tried on."""

    def __init__(
        self,
        module_fn: Callable[[], torch.nn.Module],
        dtype: torch.dtype,
        device: torch.device,
        input_shapes: list[tuple[int, ...]],
        **torch2trt_kwargs: Any,
    ):
        self.module_fn = module_fn
        self.dtype = dtype
        self.device = device
        self.input_shapes = input_shapes
        self.torch2trt_kwargs = torch2trt_kwargs

    def module_name(self) -> str:
        return f"{self.module_fn.__module__}.{self.module_fn.__name__}"


MODULE_TESTS: list[ModuleTest] = []


def add_module_test(
    dtype: torch.dtype, device: torch.device, input_shapes: list[tuple[int, ...]], **torch2trt_kwargs: Any
) -> Callable[[Callable[[], torch.nn.Module]], Callable[[], torch.nn.Module]]:
    """A decorator that adds the decorated function to :data:`MODULE_TESTS`."""

    def add(module_fn: Callable[[], torch.nn.Module]) -> Callable[[], torch.nn.Module]:
        MODULE_TESTS.append(ModuleTest(module_fn, dtype, device, input_shapes, **torch2trt_kwargs))
        return module_fn

    return add
