"""The call path of an engine: shapes set when they change, addresses when they differ, enqueue; or a CUDA graph, where
there is one for the shapes (:mod:`.graphs`).

One execution context serves one stream at a time. A stream keeps its context from call to call; at most
``max_contexts`` exist, and a stream that finds none free takes the one that was used longest ago, idle ones first.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import InvalidOption, NotTraceable
from .cudart import GraphFailed
from .engine import Binding, Context, Engine, order
from .graphs import Graphs, allocator, capturing, contiguous_strides

_log = logging.getLogger("torchtrt_bridge")

_WARM_UP = (
    "A CUDA graph of your own is being captured, and this stream has no execution context that ran with these shapes."
    " Call the module once with them before, on the stream that will capture."
)

_ALIGNMENT = 256  # of every address TensorRT is given; torch's allocator gives 512, views may have less


def _stream_handle(index: int) -> int:
    return torch.cuda.current_stream(index).cuda_stream


# the same answers in a tenth of the time, where torch has them
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _stream_handle)
_current_device: Any = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)


Check = Callable[[Sequence[torch.Tensor]], "list[torch.Tensor] | None"]


class Execution:
    """Runs an engine on flat tensors.

    Args:
        engine: the engine.
        inputs: names of the flat inputs, in the order in which they will come.
        outputs: names of the flat outputs, in the order in which they are wanted.
        kernels: a runtime cache saved earlier, or an empty tensor.
        check: called with inputs whose shapes, dtypes or device are not those of the call before. It raises for what
            does not fit, or returns the results where there is nothing to run (an empty batch), else None.
        max_contexts: most execution contexts alive at once; each has its own scratch memory.
        graphs: for how many sets of shapes each context keeps a CUDA graph, captured at the second call with them; 0
            for none.
        must_graph: an engine that cannot be captured is an error, where it would run without a graph otherwise.
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Sequence[str],
        outputs: Sequence[str],
        check: Check,
        kernels: torch.Tensor,
        max_contexts: int,
        *,
        graphs: int = 0,
        must_graph: bool = False,
    ):
        self.engine = engine
        self._names = (tuple(inputs), tuple(outputs))
        self._wanted = _Wanted(graphs, must_graph)
        self._index = engine.device.index or 0
        self._several = torch.cuda.device_count() > 1
        self._inputs = order(engine.inputs, inputs)
        self._outputs: list[Binding] = [b for b in order(engine.outputs, outputs) if b is not None]
        host = [binding.name for binding in self._inputs if binding is not None and binding.on_host]
        if graphs and host:
            self._wanted.refuse(f"the input {host[0]!r} is read on the host, in every call")
        self._check = check
        self._kernels = kernels
        self._max_contexts = max_contexts
        self._slots: dict[int, _Slot] = {}
        self._captured: list[_Slot] = []
        self._lock = threading.Lock()

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Enqueue on the current stream of the engine's device."""
        if self._several and _current_device() != self._index:
            with torch.cuda.device(self._index):  # TensorRT enqueues on the current device
                return self._run(tensors)
        return self._run(tensors)

    def _run(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        stream = _current_stream(self._index)
        while True:
            slot = self._slots.get(stream) or self._take(stream)
            with slot.lock:
                if slot.stream == stream:  # else another stream took it between the two lines above
                    try:
                        return slot.run(tensors, stream)
                    except _BelongsToAGraph:
                        pass
            self._leave(slot)

    @property
    def copied(self) -> set[int]:
        """Indices of inputs that were copied before a call, because of their strides or address."""
        return self.engine.copied

    @property
    def graphs(self) -> int:
        """For how many sets of shapes each context keeps a CUDA graph; 0 for none."""
        return 0 if self.graph_refusal is not None else self._wanted.graphs

    @property
    def graph_refusal(self) -> str | None:
        """Why there are no CUDA graphs although they were wanted; None where there are, may be, or were not wanted."""
        return self._wanted.refusal

    def with_graphs(self, graphs: int) -> Execution:
        """The same engine with contexts of its own, which keep graphs for so many sets of shapes."""
        names = self._names
        return Execution(self.engine, *names, self._check, self.kernels(), self._max_contexts, graphs=graphs)

    def layers(self) -> tuple[str, ...]:
        """What TensorRT's inspector says of the engine's layers, as JSON."""
        return (self.engine.layers(),)

    def kernels(self) -> torch.Tensor:
        """The runtime cache to save: the fullest of the contexts', or the one that was given."""
        with self._lock:
            return self._fullest_cache()

    def _fullest_cache(self) -> torch.Tensor:
        found = [self._kernels]
        for slot in self._slots.values():
            with slot.lock:
                found.extend(context.kernels() for context in slot.contexts())
        return max(found, key=torch.Tensor.numel)

    def _take(self, stream: int) -> _Slot:
        """A context for ``stream``: a new one, or another stream's, which this one then waits for."""
        with self._lock:
            slot = self._slots.get(stream)
            if slot is not None:
                return slot
            if capturing():
                raise NotTraceable(_WARM_UP)
            if sum(not other.captured for other in self._slots.values()) < self._max_contexts:
                context = self.engine.create_context(self._fullest_cache())
                slot = _Slot(self.engine, self._wanted, context, self._inputs, self._outputs, self._check, stream)
                self._slots[stream] = slot
                return slot
            device = self.engine.device
            candidates = sorted((s for s in self._slots.values() if not s.captured), key=lambda s: s.used)
            idle = (s for s in candidates if torch.cuda.ExternalStream(s.stream, device=device).query())
            slot = next(idle, candidates[0])
            with slot.lock:
                del self._slots[slot.stream]
                current = torch.cuda.current_stream(device)
                current.wait_stream(torch.cuda.ExternalStream(slot.stream, device=device))
                slot.give_to(stream, current)
                self._slots[stream] = slot
            return slot

    def _leave(self, slot: _Slot) -> None:
        """A context that the caller captured is the caller's graph's from then on, as long as this lives."""
        with self._lock:
            if slot.captured and self._slots.get(slot.stream) is slot:
                del self._slots[slot.stream]
                self._captured.append(slot)


class _BelongsToAGraph(Exception):
    """The caller captured a call of this context; another call must not change it."""


@dataclasses.dataclass
class _Wanted:
    """What an engine's contexts do about CUDA graphs: one answer for all of them."""

    graphs: int
    must: bool
    refusal: str | None = None

    def refuse(self, reason: str) -> None:
        """Raises InvalidOption where a graph is a must."""
        if self.must:
            raise InvalidOption(
                f"cuda_graph=True, but there can be no CUDA graph of this engine: {reason}. Use cuda_graph='auto',"
                " which does without where it must."
            )
        _log.info("no CUDA graph: %s", reason)
        self.refusal = reason


class _Slot:
    """One execution context, the stream that it serves, and what is set on it."""

    def __init__(
        self,
        engine: Engine,
        wanted: _Wanted,
        context: Context,
        inputs: list[Binding | None],
        outputs: list[Binding],
        check: Check,
        stream: int,
    ):
        self.lock = threading.Lock()
        self.stream = stream
        self.used = time.monotonic()
        self.captured = False
        self._wanted = wanted
        self._engine = engine
        self._device = engine.device
        self.context = context
        self._context = context.trt
        self._inputs = inputs
        self._outputs = outputs
        self._check = check
        self._known: list[tuple[torch.Size, torch.dtype]] = []
        self._set: list[tuple[torch.Size, torch.dtype]] | None = None  # what the context is set to
        self._addresses: list[int] = [-1] * len(inputs)
        self._result_addresses: list[int] = [-1] * len(outputs)
        self._layouts: list[tuple[str, tuple[Any, ...] | None]] = []
        self._new = allocator(engine.device)
        self._allocators: dict[str, Any] = {}
        self._scratch: torch.Tensor | None = None
        self._nothing = torch.empty(_ALIGNMENT, dtype=torch.uint8, device=engine.device)
        self._no_address = self._nothing.data_ptr()  # for empty tensors, which have none
        self._host: dict[int, torch.Tensor] = {}
        self._reads_host = any(b is not None and b.on_host for b in inputs)
        self._graphs: Graphs | None = None
        if wanted.graphs and wanted.refusal is None:
            self._graphs = Graphs(engine, inputs, outputs, context, wanted.graphs)

    def contexts(self) -> list[Context]:
        return [self.context, *(self._graphs.contexts() if self._graphs is not None else ())]

    def run(self, tensors: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor]:
        """The call path. What it does once per tensor is what costs; nothing here could have been done before."""
        if self.captured and not capturing():
            raise _BelongsToAGraph
        self.used = time.monotonic()
        graphs = self._graphs
        known = self._known
        try:
            if graphs is not None and graphs.current is not None and not capturing():
                results = graphs.current.quick(tensors, stream)
                if results is not None:
                    return results
            fits = len(tensors) == len(known)
            for tensor, (shape, dtype) in zip(tensors, known):
                if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != self._device:
                    fits = False
        except AttributeError:  # no tensor at all, which the check says better
            fits = False
        except GraphFailed as error:
            self._graphs = None
            self._wanted.refuse(str(error))
            fits = True
        if not fits:
            self._known = []
            empty = self._check(tensors)
            if empty is not None:
                return empty
            if self._graphs is not None:
                self._graphs.turn_to(tensors)
            if not self._reads_host:  # else what an input holds may change the shapes: they are set in every call
                self._known = [(tensor.shape, tensor.dtype) for tensor in tensors]
        if self._graphs is not None:
            try:
                results = self._graphs.run(tensors, stream, self._scratch)
                if results is not None:
                    return results
            except GraphFailed as error:
                self._graphs = None
                self._wanted.refuse(str(error))
        return self._enqueue(tensors, stream)

    def _enqueue(self, tensors: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor]:
        """A call without a graph."""
        if capturing():
            if self._set is not self._known:
                raise NotTraceable(_WARM_UP)
            self.captured = True
        if self._set is not self._known or self._reads_host:
            self._set_shapes(tensors)
            self._set = self._known
        addresses = self._addresses
        copies = []  # copies made here must live until the work that reads them is enqueued
        for index, tensor in enumerate(tensors):
            address = tensor.data_ptr()
            if address != addresses[index] or not tensor.is_contiguous():
                if not tensor.is_contiguous() or address % _ALIGNMENT:
                    tensor = tensor.clone(memory_format=torch.contiguous_format)
                    copies.append(tensor)
                    self._engine.copied.add(index)
                    address = tensor.data_ptr()
                self._set_input(index, address)
        context = self._context
        results: list[Any] = []
        new = self._new
        for name, layout in self._layouts:
            if layout is None:
                results.append(None)
                continue
            result = new(*layout)
            address = result.data_ptr()
            if address != self._result_addresses[len(results)]:
                context.set_tensor_address(name, address or self._no_address)
                self._result_addresses[len(results)] = address
            results.append(result)
        if not context.execute_async_v3(stream):
            raise RuntimeError("TensorRT could not run the engine; the log of 'torchtrt_bridge' has its message.")
        if self._allocators:
            for index, binding in enumerate(self._outputs):
                if results[index] is None:
                    results[index] = self._allocators[binding.name].result(binding)
        return results

    def _set_input(self, index: int, address: int) -> None:
        binding = self._inputs[index]
        if binding is not None and not binding.on_host:  # None: the engine does not use this input
            self._context.set_tensor_address(binding.name, address or self._no_address)
            self._addresses[index] = address

    def give_to(self, stream: int, current: torch.cuda.Stream) -> None:
        """Serve another stream from now on; the memory in use belongs to it too."""
        self.stream = stream
        if self._graphs is not None:
            self._graphs.give_to(current)
        for tensor in (self._scratch, self._nothing):
            if tensor is not None:
                tensor.record_stream(current)

    def _set_shapes(self, tensors: Sequence[torch.Tensor]) -> None:
        context = self._context
        for index, (binding, tensor) in enumerate(zip(self._inputs, tensors)):
            if binding is None:
                continue
            if not context.set_input_shape(binding.name, tuple(tensor.shape)):
                raise RuntimeError(
                    f"TensorRT refused shape {tuple(tensor.shape)} for {binding.name!r}; the log of 'torchtrt_bridge'"
                    " says why."
                )
            if binding.on_host:  # only shapes depend on it: read on the host, it waits for the device
                self._host[index] = tensor.cpu().contiguous()
                context.set_tensor_address(binding.name, self._host[index].data_ptr())
        needed = self._engine.scratch_size(context)
        if self._scratch is None or self._scratch.numel() < needed:
            self._scratch = torch.empty(max(needed, 1), dtype=torch.uint8, device=self._device)
            context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        self._layouts = [(binding.name, self._layout(binding)) for binding in self._outputs]

    def _layout(self, binding: Binding) -> tuple[Any, ...] | None:
        """Shape, strides and dtype of a result; None where the size depends on the data."""
        shape = tuple(self._context.get_tensor_shape(binding.name))
        if all(size >= 0 for size in shape):
            return shape, contiguous_strides(shape), binding.dtype
        if binding.name not in self._allocators:
            self._allocators[binding.name] = _output_allocator(self._engine)
            self._context.set_output_allocator(binding.name, self._allocators[binding.name])
        return None


def _output_allocator(engine: Engine) -> Any:
    """TensorRT's IOutputAllocator over torch's allocator, for an output whose size depends on the data."""
    trt = engine.flavor.trt

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
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
            if not count:
                return torch.empty(self._shape, dtype=binding.dtype, device=engine.device)
            if memory is None:
                raise RuntimeError(
                    f"TensorRT asked for no memory for the output {binding.name!r}, so it has no values."
                )
            return memory[: count * binding.dtype.itemsize].view(binding.dtype).view(self._shape)

    return OutputAllocator()
