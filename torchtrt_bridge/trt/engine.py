"""A plan on a GPU: deserialized once, run by as many execution contexts as there are streams in use."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import torch

from .flavor import Flavor, flavor
from .log import Messages, listening

_TORCH_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "FP8": torch.float8_e4m3fn,
}


@dataclasses.dataclass(frozen=True)
class Binding:
    """One input or output of an engine: its name, dtype, shape (-1 where dynamic), and whether it is read on the
    host (a tensor that only shapes depend on)."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    on_host: bool


class Engine:
    """A deserialized plan.

    Args:
        plan: uint8 tensor on the CPU; not copied, and kept for saving.
        device: the CUDA device that it runs on.
        cache: a runtime cache saved earlier (compiled kernels), or empty; one that does not fit is ignored.
        specialization: how kernels for dynamic shapes are chosen, where the flavour has that choice: ``"lazy"``,
            ``"eager"`` or ``"none"``; None leaves TensorRT's default.

    Raises:
        RuntimeError: TensorRT refused the plan, with its own messages.
    """

    def __init__(
        self, plan: torch.Tensor, device: torch.device, cache: torch.Tensor | None = None, specialization: str | None = None
    ):
        self.flavor: Flavor = flavor()
        self.device = device
        trt = self.flavor.trt
        with torch.cuda.device(device), listening() as messages:
            torch.cuda.current_stream()  # torch's own context first: TensorRT then uses the same
            self._runtime = trt.Runtime(self.flavor.logger)
            self.engine = self._runtime.deserialize_cuda_engine(memoryview(plan.numpy()))
            if self.engine is None:
                raise RuntimeError(f"TensorRT cannot load the plan: {_reason(messages)}")
        self._lock = threading.Lock()
        self._config: Any = None
        self._cache: Any = None
        self._configure(cache, specialization)
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = [self._binding(name) for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [self._binding(name) for name in names if modes[name] == trt.TensorIOMode.OUTPUT]

    def create_context(self) -> Any:
        """A new execution context whose scratch memory the caller provides."""
        with self._lock, torch.cuda.device(self.device), listening() as messages:
            strategy = self.flavor.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self.engine.create_execution_context(self._config if self._config is not None else strategy)
            if context is None:
                raise RuntimeError(f"TensorRT cannot make an execution context: {_reason(messages)}")
            return context

    def scratch_size(self, context: Any) -> int:
        """Bytes of device memory that ``context`` needs at the shapes that are set."""
        size = context.update_device_memory_size_for_shapes()
        return int(size) if size else int(self.engine.device_memory_size_v2)

    def serialized_cache(self) -> torch.Tensor:
        """The kernels compiled so far, as a uint8 tensor; empty where the flavour keeps none."""
        if self._cache is None:
            return torch.empty(0, dtype=torch.uint8)
        with self._lock, torch.cuda.device(self.device):
            blob = self._cache.serialize()
        data = bytearray(memoryview(blob)) if blob is not None else bytearray()
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    def _configure(self, cache: torch.Tensor | None, specialization: str | None) -> None:
        if not self.flavor.has_runtime_config:
            return
        trt = self.flavor.trt
        with torch.cuda.device(self.device):
            self._config = self.engine.create_runtime_config()
            self._config.set_execution_context_allocation_strategy(
                trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
            if specialization is not None and hasattr(self._config, "dynamic_shapes_kernel_specialization_strategy"):
                self._config.dynamic_shapes_kernel_specialization_strategy = getattr(
                    trt.DynamicShapesKernelSpecializationStrategy, specialization.upper()
                )
            if self.flavor.has_runtime_cache:
                self._cache = self._config.create_runtime_cache()
                if cache is not None and cache.numel():
                    self._cache.deserialize(cache.numpy().tobytes())  # False for another GPU: it is compiled again
                self._config.set_runtime_cache(self._cache)

    def _binding(self, name: str) -> Binding:
        trt = self.flavor.trt
        return Binding(
            name,
            _TORCH_DTYPES[self.engine.get_tensor_dtype(name).name],
            tuple(self.engine.get_tensor_shape(name)),
            self.engine.get_tensor_location(name) == trt.TensorLocation.HOST,
        )


def order(bindings: Sequence[Binding], names: Sequence[str]) -> list[Binding | None]:
    """``bindings`` in the order of ``names``; None for one that the engine does not have (an unused input)."""
    by_name = {binding.name: binding for binding in bindings}
    return [by_name.get(name) for name in names]


def _reason(messages: Messages) -> str:
    return messages.errors[-1] if messages.errors else "it gave no reason"
