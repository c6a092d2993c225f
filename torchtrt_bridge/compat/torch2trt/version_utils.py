"""Versions that compare with strings: ``trt_version() >= "10.0"``."""

from __future__ import annotations

from typing import Any

import packaging.version
import torch


class Version(packaging.version.Version):
    """A version; what it is compared with may be a string."""

    def __lt__(self, other: Any) -> bool:
        return super().__lt__(_parsed(other))

    def __le__(self, other: Any) -> bool:
        return super().__le__(_parsed(other))

    def __gt__(self, other: Any) -> bool:
        return super().__gt__(_parsed(other))

    def __ge__(self, other: Any) -> bool:
        return super().__ge__(_parsed(other))

    def __eq__(self, other: object) -> bool:
        return super().__eq__(_parsed(other))

    def __hash__(self) -> int:
        return super().__hash__()


def _parsed(other: Any) -> Any:
    return Version(other) if isinstance(other, str) else other


def trt_version() -> Version:
    """The version of the TensorRT in use, or, for TensorRT for RTX, of the TensorRT whose API it has (10.0 or later):
    its own numbers start again at 1, and code asks ``trt_version() < "10.0"`` to know which calls there are."""
    from ...trt.targets import installed

    flavor = installed()
    return Version(flavor.version if flavor.name == "tensorrt" else "10.16")


def torch_version() -> Version:
    return Version(torch.__version__)
