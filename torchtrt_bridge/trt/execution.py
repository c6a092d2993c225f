"""The call path of an engine: shapes set when they change, addresses when they differ, enqueue.

One execution context serves one stream at a time. A stream keeps its context from call to call; at most
``max_contexts`` exist, and a stream that finds none free takes the one that was used longest ago, idle ones first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from .engine import Binding, Engine, order

_ALIGNMENT = 256  # of every address TensorRT is given; torch's allocator gives 512, views may have less


def _stream_handle(index: int) -> int:
    return torch.cuda.current_stream(index).cuda_stream


# the same answer in a tenth of the time, where torch has it
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_handle)


class Execution:
    """Runs an engine on flat tensors.

    Args:
        engine: the engine.
        inputs: names of the flat inputs, in the order in which they will come.
        outputs: names of the flat outputs, in the order in which they are wanted.
        max_contexts: most execution contexts alive at once; each has its own scratch memory.
    """

    def __init__(self, engine: Engine, inputs: Sequence[str], outputs: Sequence[str], max_contexts: int = 8):
        self.engine = engine
        self._index = engine.device.index or 0
        self._inputs = order(engine.inputs, inputs)
        self._outputs: list[Binding] = [b for b in order(engine.outputs, outputs) if b is not None]
        self._max_contexts = max_contexts
        self._slots: dict[int, _Slot] = {}
        self._lock = threading.Lock()

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Enqueue on the current stream; ``tensors`` are on the engine's device and have the engine's dtypes."""
        stream = _current_stream(self._index)
        while True:
            slot = self._slots.get(stream) or self._take(stream)
            with slot.lock:
                if slot.stream == stream:  # else another stream took it between the two lines above
                    return slot.run(tensors, stream)

    def prepare(self) -> None:
        """Make the current stream's context now, rather than in its first call."""
        stream = _current_stream(self._index)
        if stream not in self._slots:
            self._take(stream)

    def _take(self, stream: int) -> _Slot:
        """A context for ``stream``: a new one, or another stream's, which this one then waits for."""
        with self._lock:
            slot = self._slots.get(stream)
            if slot is not None:
                return slot
            if len(self._slots) < self._max_contexts:
                slot = _Slot(self.engine, self._inputs, self._outputs, stream)
                self._slots[stream] = slot
                return slot
            device = self.engine.device
            candidates = sorted(self._slots.values(), key=lambda s: s.used)
            idle = (s for s in candidates if torch.cuda.ExternalStream(s.stream, device=device).query())
            slot = next(idle, candidates[0])
            with slot.lock:
                del self._slots[slot.stream]
                current = torch.cuda.current_stream(device)
                current.wait_stream(torch.cuda.ExternalStream(slot.stream, device=device))
                slot.give_to(stream, current)
                self._slots[stream] = slot
            return slot


class _Slot:
    """One execution context, the stream that it serves, and what is set on it."""

    def __init__(self, engine: Engine, inputs: list[Binding | None], outputs: list[Binding], stream: int):
        self.lock = threading.Lock()
        self.stream = stream
        self.used = time.monotonic()
        self._engine = engine
        self._device = engine.device
        self._context = engine.create_context()
        self._inputs = inputs
        self._outputs = outputs
        self._shapes: list[torch.Size] | None = None
        self._out_shapes: list[tuple[int, ...] | None] = []
        self._in_addresses: list[int] = [-1] * len(inputs)
        self._allocators: dict[str, Any] = {}
        self._scratch: torch.Tensor | None = None
        self._nothing = torch.empty(_ALIGNMENT, dtype=torch.uint8, device=engine.device)  # address of empty tensors
        self._host: list[torch.Tensor | None] = [None] * len(inputs)
        self._has_host_inputs = any(b is not None and b.on_host for b in inputs)
        self._names = [b.name if b is not None else "" for b in inputs]

    def run(self, tensors: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor]:
        context = self._context
        self.used = time.monotonic()
        if self._has_host_inputs:
            tensors = self._set_host_inputs(tensors)
        shapes = [t.shape for t in tensors]
        if shapes != self._shapes:
            self._set_shapes(shapes)
        alive = []  # copies made here must live until the work that reads them is enqueued
        addresses = self._in_addresses
        for index, tensor in enumerate(tensors):
            address = tensor.data_ptr()
            if address != addresses[index] or not tensor.is_contiguous():
                if not tensor.is_contiguous() or address % _ALIGNMENT:
                    tensor = tensor.clone(memory_format=torch.contiguous_format)
                    alive.append(tensor)
                    address = tensor.data_ptr()
                if self._inputs[index] is not None:
                    context.set_tensor_address(self._names[index], address or self._nothing.data_ptr())
                addresses[index] = address
        results: list[Any] = []
        device = self._device
        for binding, shape in zip(self._outputs, self._out_shapes):
            if shape is None:
                results.append(None)
                continue
            result = torch.empty(shape, dtype=binding.dtype, device=device)
            context.set_tensor_address(binding.name, result.data_ptr() or self._nothing.data_ptr())
            results.append(result)
        if not context.execute_async_v3(stream):
            raise RuntimeError("TensorRT could not run the engine; the log of 'torchtrt_bridge' has its message.")
        for index, binding in enumerate(self._outputs):
            if results[index] is None:
                results[index] = self._allocators[binding.name].result(binding)
        return results

    def give_to(self, stream: int, current: torch.cuda.Stream) -> None:
        """Serve another stream from now on; the memory in use belongs to it too."""
        self.stream = stream
        for tensor in (self._scratch, self._nothing):
            if tensor is not None:
                tensor.record_stream(current)

    def _set_host_inputs(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Inputs that only shapes depend on are read on the host, so they wait for the device and may change shapes."""
        moved = list(tensors)
        for index, binding in enumerate(self._inputs):
            if binding is not None and binding.on_host:
                moved[index] = self._host[index] = tensors[index].cpu().contiguous()
                self._context.set_tensor_address(binding.name, moved[index].data_ptr())
                self._shapes = None
        return moved

    def _set_shapes(self, shapes: list[torch.Size]) -> None:
        context = self._context
        self._shapes = None
        for binding, shape in zip(self._inputs, shapes):
            if binding is not None and not context.set_input_shape(binding.name, tuple(shape)):
                raise RuntimeError(
                    f"TensorRT refused shape {tuple(shape)} for {binding.name!r}; the log of 'torchtrt_bridge' says why."
                )
        needed = self._engine.scratch_size(context)
        if self._scratch is None or self._scratch.numel() < needed:
            self._scratch = torch.empty(max(needed, 1), dtype=torch.uint8, device=self._device)
            context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        self._out_shapes = []
        for binding in self._outputs:
            shape = tuple(context.get_tensor_shape(binding.name))
            if any(size < 0 for size in shape):
                allocator = self._allocators.get(binding.name)
                if allocator is None:
                    allocator = self._allocators[binding.name] = _output_allocator(self._engine)
                    context.set_output_allocator(binding.name, allocator)
                self._out_shapes.append(None)
            else:
                self._out_shapes.append(shape)
        self._shapes = shapes


def _output_allocator(engine: Engine) -> Any:
    """TensorRT's IOutputAllocator over torch's allocator, for an output whose size depends on the data."""
    trt = engine.flavor.trt

    class OutputAllocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self._memory: torch.Tensor | None = None
            self._shape: tuple[int, ...] = ()

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            self._memory = torch.empty(max(size, 1), dtype=torch.uint8, device=engine.device)
            return self._memory.data_ptr()

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:
            self._shape = tuple(shape)

        def result(self, binding: Binding) -> torch.Tensor:
            memory, self._memory = self._memory, None
            count = 1
            for size in self._shape:
                count *= size
            if memory is None or not count:
                return torch.empty(self._shape, dtype=binding.dtype, device=engine.device)
            return memory[: count * binding.dtype.itemsize].view(binding.dtype).view(self._shape)

    return OutputAllocator()
