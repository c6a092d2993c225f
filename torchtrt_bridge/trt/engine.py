"""A plan on a GPU: deserialized once, run by as many execution contexts as there are streams in use."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import torch

from .flavor import Flavor, flavor
from .log import Messages, listening
from .tf32 import settle

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


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """An execution context and its runtime cache (None where the flavour keeps none).

    Contexts do not share a cache: two that ran at once over one crashed TensorRT-RTX 1.6.
    """

    trt: Any
    cache: Any

    def kernels(self) -> torch.Tensor:
        """The kernels compiled so far, as a uint8 tensor to save. The context must not run meanwhile."""
        blob = self.cache.serialize() if self.cache is not None else None
        data = bytearray(memoryview(blob)) if blob is not None else bytearray()
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8, device="cpu")


class Engine:
    """A deserialized plan.

    Args:
        plan: uint8 tensor on the CPU; not copied, and kept for saving.
        device: the CUDA device that it runs on.
        tf32: whether the engine was built to compute fp32 in TF32 (see :mod:`.tf32`).
        specialization: how kernels for dynamic shapes are chosen, where the flavour has that choice: ``"lazy"``,
            ``"eager"`` or ``"none"``; None leaves TensorRT's default.

    Attributes:
        computes_tf32: whether this process rounds fp32 products to TF32 in this engine.

    Raises:
        RuntimeError: TensorRT refused the plan, with its own messages.
    """

    def __init__(
        self, plan: torch.Tensor, device: torch.device, *, tf32: bool = False, specialization: str | None = None
    ):
        self.flavor: Flavor = flavor()
        self.device = device
        self.copied: set[int] = set()
        """Indices of inputs that were copied before a call, because of their strides or address."""
        self._specialization = specialization
        self._lock = threading.Lock()
        trt = self.flavor.trt
        with torch.cuda.device(device), listening() as messages:
            torch.cuda.current_stream()  # torch's own context first: TensorRT then uses the same
            self.computes_tf32 = settle(self.flavor, tf32)
            self._runtime = trt.Runtime(self.flavor.logger)
            self.engine = self._runtime.deserialize_cuda_engine(plan.numpy().data)
            if self.engine is None:
                raise RuntimeError(f"TensorRT cannot load the plan: {_reason(messages)}")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = [self._binding(name) for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [self._binding(name) for name in names if modes[name] == trt.TensorIOMode.OUTPUT]

    def create_context(self, kernels: torch.Tensor, *, settled: bool = False) -> Context:
        """A new execution context whose scratch memory the caller provides.

        ``kernels`` is a runtime cache saved earlier, or empty; one that does not fit this GPU is ignored. ``settled``:
        once it ran, the context keeps its kernels, instead of swapping in better ones when they are compiled.
        """
        trt = self.flavor.trt
        specialization = self._specialization
        swaps = hasattr(trt, "DynamicShapesKernelSpecializationStrategy")
        if settled and swaps and specialization in (None, "lazy"):
            specialization = "eager"
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        cache: Any = None
        how: Any = strategy
        with self._lock, torch.cuda.device(self.device), listening() as messages:
            if self.flavor.has_runtime_config:
                how = self.engine.create_runtime_config()
                how.set_execution_context_allocation_strategy(strategy)
                if specialization is not None:
                    kinds = trt.DynamicShapesKernelSpecializationStrategy
                    how.dynamic_shapes_kernel_specialization_strategy = getattr(kinds, specialization.upper())
                if self.flavor.has_runtime_cache:
                    cache = how.create_runtime_cache()
                    if kernels.numel():
                        cache.deserialize(kernels.numpy().tobytes())  # False for another GPU: compiled anew
                    how.set_runtime_cache(cache)
            context = self.engine.create_execution_context(how)
            if context is None:
                raise RuntimeError(f"TensorRT cannot make an execution context: {_reason(messages)}")
        return Context(context, cache)

    def layers(self) -> str:
        """The engine's layers with their types, as JSON, in the words of TensorRT's inspector."""
        trt = self.flavor.trt
        with self._lock, torch.cuda.device(self.device):
            inspector = self.engine.create_engine_inspector()
            return "" if inspector is None else str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def scratch_size(self, context: Any) -> int:
        """Bytes of device memory that ``context`` needs at the shapes that are set."""
        size = context.update_device_memory_size_for_shapes()
        return int(size) if size else int(self.engine.device_memory_size_v2)

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
