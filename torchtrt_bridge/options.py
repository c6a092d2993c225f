"""The settings of a build, in one place, with their defaults."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from .errors import InvalidOption


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Settings of TensorRT's builder. None leaves TensorRT's own default.

    One that the TensorRT flavour in use does not have raises :class:`~torchtrt_bridge.errors.InvalidOption` at the
    build; nothing is dropped silently.

    Args:
        workspace: most scratch memory that a layer may use, in bytes.
        optimization_level: 0 (fastest build) to 5 (fastest engine).
        timing_cache: a file that keeps measured kernels between builds (full TensorRT only).
        tf32: let fp32 matrix products and convolutions use TF32 (10 bits of mantissa). Off: fp32 means fp32.
        version_compatible: build a plan that later TensorRT versions load (full TensorRT only).
        hardware_compatible: build a plan for every GPU from Ampere on (full TensorRT; RTX's portable plans are that
            already).
        kernel_specialization: how kernels for dynamic shapes are chosen when the engine runs (RTX only): ``"lazy"``
            (its default: general ones first, special ones swapped in when compiled), ``"eager"``, or ``"none"``, with
            which the same shape always runs the same kernels, so that results repeat to the last bit.
        minimum_share: the least share of the matrix and convolution work that is to run in the precision that was asked
            for, 0 to 1; less is :class:`~torchtrt_bridge.errors.PrecisionNotApplied`.
        isolate: build in a child process, which takes half a second, and which a fault inside TensorRT ends instead of
            this one. None does so for TensorRT for RTX, whose builder has ended processes, with a GPU and without, but
            for weights that the disk at ``TMPDIR`` has no room for. Routes and converters that call Python functions of
            this process build here all the same, and Torch-TensorRT always in a process of its own.
        torch_tensorrt: further settings of the route ``"torch_tensorrt"``, by the names that its CompilationSettings
            has: ``{"decompose_attention": True}``. Those that are not a matter of how the plan is built are refused
            (see ``docs/routes.md``).

    Raises:
        InvalidOption: a value outside its range.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: str | os.PathLike[str] | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    kernel_specialization: str | None = None
    minimum_share: float = 0.9
    isolate: bool | None = None
    torch_tensorrt: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.workspace is not None and (type(self.workspace) is not int or self.workspace <= 0):
            raise InvalidOption(f"BuildOptions(workspace={self.workspace!r}): a positive number of bytes is needed.")
        if self.optimization_level is not None and self.optimization_level not in range(6):
            raise InvalidOption(
                f"BuildOptions(optimization_level={self.optimization_level!r}): an integer from 0 to 5 is needed."
            )
        if self.kernel_specialization not in (None, "lazy", "eager", "none"):
            raise InvalidOption(
                f"BuildOptions(kernel_specialization={self.kernel_specialization!r}): it is 'lazy', 'eager' or 'none'."
            )
        if type(self.minimum_share) not in (int, float) or not 0 <= self.minimum_share <= 1:
            raise InvalidOption(f"BuildOptions(minimum_share={self.minimum_share!r}): a number from 0 to 1 is needed.")
        if self.isolate not in (None, True, False):
            raise InvalidOption(f"BuildOptions(isolate={self.isolate!r}): it is True, False or None.")
        named = isinstance(self.torch_tensorrt, Mapping) and all(isinstance(name, str) for name in self.torch_tensorrt)
        if not named:
            raise InvalidOption(
                f"BuildOptions(torch_tensorrt={self.torch_tensorrt!r}): give its settings by name, as"
                " {'decompose_attention': True}."
            )
