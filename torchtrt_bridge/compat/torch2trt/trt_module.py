"""torch2trt's TRTModule: ours, which also takes engines and files of torch2trt itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...backends.interface import input_names, output_names
from ...errors import InvalidFile
from ...runtime.module import TRTModule as _TRTModule
from .flattener import Flattener


class TRTModule(_TRTModule):
    """An empty one takes what ``torch2trt()`` here saved, and what torch2trt itself saved.

    Args:
        engine: a plan: the path of a file, bytes, TensorRT's ``IHostMemory``, or an ``ICudaEngine``.
        input_names: the engine's input names, in the order of the call's arguments.
        output_names: the engine's output names, in the order of the results.
        input_flattener, output_flattener: the structure around them; None means a tuple (or a single result).
    """

    def __init__(
        self,
        engine: Any = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        input_flattener: Flattener | None = None,
        output_flattener: Flattener | None = None,
        **ours: Any,
    ):
        super().__init__(**ours)
        if engine is not None:
            self._load_engine(_plan(engine), input_names, output_names, input_flattener, output_flattener)

    @classmethod
    def of(cls, module: _TRTModule) -> TRTModule:
        """``module`` itself, with this class's attributes."""
        module.__class__ = cls
        assert isinstance(module, cls)
        return module

    @property
    def engine(self) -> Any:
        """TensorRT's ``ICudaEngine``; None where there is none: nothing loaded, or running without TensorRT."""
        engine = getattr(self._execution, "engine", None)
        return getattr(engine, "engine", None)

    @property
    def input_names(self) -> list[str] | None:
        return None if self._artifact is None else input_names(self.signature)

    @property
    def output_names(self) -> list[str] | None:
        return None if self._artifact is None else output_names(self.signature)

    def __deepcopy__(self, memo: dict[int, Any]) -> TRTModule:
        return TRTModule.of(super().__deepcopy__(memo))

    def __getattr__(self, name: str) -> Any:
        if name in ("network", "context"):
            raise AttributeError(
                f"TRTModule.{name}: torchtrt_bridge keeps no {name} that others may use. signature, report and"
                " provenance say what the engine is; save_plan() and save_onnx() write it for other tools."
            )
        return super().__getattr__(name)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}manifest" in state_dict or f"{prefix}input_names" not in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        flatteners = [state_dict.get(f"{prefix}{which}_flattener") for which in ("input", "output")]
        self._load_engine(
            _plan(state_dict.get(f"{prefix}engine")),
            state_dict[f"{prefix}input_names"],
            state_dict.get(f"{prefix}output_names"),
            *(Flattener.from_dict(flattener) if flattener else None for flattener in flatteners),
        )

    def _load_engine(
        self,
        plan: torch.Tensor,
        input_names: Sequence[str] | None,
        output_names: Sequence[str] | None,
        input_flattener: Flattener | None,
        output_flattener: Flattener | None,
    ) -> None:
        """Raises EngineMismatch where TensorRT here does not take the plan; the module then stays as it was."""
        from .engine_file import artifact_of

        artifact = artifact_of(
            plan, input_names, output_names, input_flattener, output_flattener, self._wanted_device
        )
        from ...runtime.artifact import to_tensors

        self._load(to_tensors(artifact, ()))


def _plan(engine: Any) -> torch.Tensor:
    """The plan's bytes as a uint8 tensor."""
    if isinstance(engine, (str, os.PathLike)):
        with open(engine, "rb") as file:
            engine = file.read()
    elif hasattr(engine, "serialize"):
        engine = engine.serialize()
    try:
        data = bytearray(memoryview(engine))
    except TypeError:
        raise InvalidFile(
            f"The engine is a {type(engine).__name__}; a file's path, bytes, IHostMemory or ICudaEngine is needed."
        ) from None
    if not data:
        raise InvalidFile("The engine is empty.")
    return torch.frombuffer(data, dtype=torch.uint8)
