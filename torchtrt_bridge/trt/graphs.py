"""CUDA graphs: an engine at one set of input shapes, captured once, then launched by one call of the driver.

TensorRT asks that a context stay as it is once it was captured, so each graph has a context of its own. An input keeps
the address that it was captured with for as long as callers come with that address; when one comes with another, the
graph is captured anew, over a buffer of its own for that input, into which it then copies. Results are copied out of
the graph's buffers into fresh tensors, which are the caller's to keep. All copies are nodes of the graph: one
executable for each set of addresses that comes again.
"""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch

from .cudart import GraphFailed, Runtime, runtime
from .engine import Binding, Context, Engine

_log = logging.getLogger("torchtrt_bridge")

_ALIGNMENT = 256
_EXECUTABLES = 8  # of one graph: sets of addresses whose copies are nodes of the graph
_PATIENCE = 16  # an executable is made for a set of addresses at most once in so many calls, the first ones apart
_RECENT = 64


class Graphs:
    """The graphs of one stream's context: for each of the last ``size`` sets of shapes, one.

    Args:
        engine: the engine.
        inputs: the bindings of the flat inputs; None for one that the engine does not use.
        outputs: the bindings of the results.
        plain: the context that runs the first calls; its kernels are where a graph's context starts from.
        size: most graphs kept. Each has its own context, result buffers, and buffers for inputs whose address changed.
    """

    def __init__(
        self, engine: Engine, inputs: Sequence[Binding | None], outputs: Sequence[Binding], plain: Context, size: int
    ):
        self._engine, self._inputs, self._outputs = engine, inputs, outputs
        self._plain = plain
        self._size = size
        self._kept: collections.OrderedDict[tuple[torch.Size, ...], Graph] = collections.OrderedDict()
        self._calls: collections.OrderedDict[tuple[torch.Size, ...], int] = collections.OrderedDict()
        self._shapes: tuple[torch.Size, ...] = ()
        self.current: Graph | None = None

    def turn_to(self, tensors: Sequence[torch.Tensor]) -> None:
        """Serve these inputs' shapes from now on."""
        self._shapes = tuple([tensor.shape for tensor in tensors])
        self.current = self._kept.get(self._shapes)
        if self.current is not None:
            self._kept.move_to_end(self._shapes)

    def run(
        self, tensors: Sequence[torch.Tensor], stream: int, scratch: torch.Tensor | None
    ) -> list[torch.Tensor] | None:
        """The results for inputs of the shapes turned to; None where a plain call has to make them.

        Raises:
            GraphFailed: the engine cannot be captured.
        """
        if capturing():  # the caller is capturing this call; what is launched then belongs to the caller's graph
            return None
        graph = self.current
        if graph is not None:
            return graph(tensors, stream)
        if not self._is_time():
            return None
        while len(self._kept) >= self._size:
            shapes, oldest = self._kept.popitem(last=False)
            self._calls.pop(shapes, None)
            oldest.close()
        kernels = self._plain.kernels()
        graph = Graph(self._engine, self._inputs, self._outputs, tensors, kernels, scratch)
        results = graph.capture(tensors, stream)
        self.current = self._kept[self._shapes] = graph
        return results

    def contexts(self) -> list[Context]:
        return [graph.context for graph in self._kept.values()]

    def give_to(self, current: torch.cuda.Stream) -> None:
        """Another stream uses the graphs, and their memory, from now on."""
        for graph in self._kept.values():
            graph.give_to(current)

    def _is_time(self) -> bool:
        """At the second call with these shapes, or, where a graph would have to go for it, the sixteenth."""
        calls = self._calls[self._shapes] = self._calls.pop(self._shapes, 0) + 1
        while len(self._calls) > _RECENT:
            self._calls.popitem(last=False)
        return calls >= (2 if len(self._kept) < self._size else _PATIENCE)


class Graph:
    """An engine at the shapes of ``tensors``, captured by :meth:`capture` and launched by calls.

    ``scratch`` is memory that the context may use, shared with others of the same stream; more is made where it is not
    enough.

    Raises:
        GraphFailed: results whose size depends on the data, or an empty input.
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Sequence[Binding | None],
        outputs: Sequence[Binding],
        tensors: Sequence[torch.Tensor],
        kernels: torch.Tensor,
        scratch: torch.Tensor | None,
    ):
        self._runtime: Runtime = runtime()
        self._process = os.getpid()
        self._graph: int | None = None
        self._base: int | None = None
        self._executables: collections.OrderedDict[tuple[int, ...], int] = collections.OrderedDict()
        self._seen: collections.OrderedDict[tuple[int, ...], None] = collections.OrderedDict()
        self._device, self._copied = engine.device, engine.copied
        self._new = allocator(engine.device)
        self._several = torch.cuda.device_count() > 1
        self._start = self._runtime.launch
        self._used = [(index, binding) for index, binding in enumerate(inputs) if binding is not None]
        self._indices = [index for index, _ in self._used]
        # kernels that change while the engine runs would not change in the graph: settled before it is captured
        self.context = engine.create_context(kernels, settled=True)
        context = self.context.trt
        for index, binding in self._used:
            if not tensors[index].numel() or not context.set_input_shape(binding.name, tuple(tensors[index].shape)):
                raise GraphFailed(f"TensorRT takes no shape {tuple(tensors[index].shape)} for {binding.name!r}")
        shapes = [tuple(context.get_tensor_shape(binding.name)) for binding in outputs]
        for binding, shape in zip(outputs, shapes):
            if any(size < 0 for size in shape):
                raise GraphFailed(f"the size of the result {binding.name!r} depends on the data")
        needed = engine.scratch_size(context)
        if scratch is None or scratch.numel() < needed:
            scratch = _buffer((max(needed, 1),), torch.uint8, self._device)
        self._scratch = scratch
        context.set_device_memory(scratch.data_ptr(), scratch.numel())
        self._results = [_buffer(shape, binding.dtype, self._device) for binding, shape in zip(outputs, shapes)]
        for binding, result in zip(outputs, self._results):
            context.set_tensor_address(binding.name, result.data_ptr() or scratch.data_ptr())
        self._layouts = [(tuple(result.shape), result.stride(), result.dtype) for result in self._results]
        self._own: dict[int, torch.Tensor] = {}
        self._addresses: dict[int, int] = {}
        used = set(self._indices)
        self._expected = [(t.shape, t.dtype, index in used) for index, t in enumerate(tensors)]
        self._credit = float(2 * _EXECUTABLES)

    def quick(self, tensors: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor] | None:
        """The results for contiguous inputs of this graph's shapes; None, and nothing done, for others. This is what
        most calls come to: everything is looked at once."""
        if self._several or len(tensors) != len(self._expected):
            return None
        device, addresses = self._device, []
        for tensor, (shape, dtype, used) in zip(tensors, self._expected):
            if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != device:
                return None
            if used:
                if not tensor.is_contiguous():
                    return None
                addresses.append(tensor.data_ptr())
        results = [self._new(*layout) for layout in self._layouts]
        for result in results:
            addresses.append(result.data_ptr())
        key = tuple(addresses)
        executable = self._executables.get(key)
        if executable is None:
            return self._with_other_addresses(tensors, results, key, stream)
        code = self._start(executable, stream)
        if code:
            raise self._not_launched(code)
        return results

    def __call__(self, tensors: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor]:
        """The results, in tensors of the caller's own, enqueued on the device's current stream ``stream``."""
        results = [self._new(*layout) for layout in self._layouts]
        addresses = []
        for index in self._indices:
            tensor = tensors[index]
            addresses.append(tensor.data_ptr() if tensor.is_contiguous() else -1)
        for result in results:
            addresses.append(result.data_ptr())
        key = tuple(addresses)
        executable = self._executables.get(key)
        if executable is None:
            return self._with_other_addresses(tensors, results, key, stream)
        self._launch(executable, stream)
        return results

    def capture(self, tensors: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor]:
        """Run once on ``stream``, which gives the results, and capture a second run, which does not happen.

        Raises:
            GraphFailed: TensorRT or CUDA refused.
        """
        with torch.cuda.device(self._device):
            self._forget()
            context = self.context.trt
            for index, binding in self._used:
                tensor = tensors[index]
                if index not in self._own and not _direct(tensor):
                    self._copied.add(index)
                    self._own[index] = _buffer(tensor.shape, tensor.dtype, self._device)
                if index in self._own:
                    tensor = self._own[index].copy_(tensor.detach())
                self._addresses[index] = tensor.data_ptr()
                context.set_tensor_address(binding.name, tensor.data_ptr())
            if not context.execute_async_v3(stream):
                raise GraphFailed("TensorRT could not run the engine; the log of 'torchtrt_bridge' has its message")
            results = [result.clone() for result in self._results]
            torch.cuda.current_stream(self._device).synchronize()
            with self._runtime.stream() as own:
                if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(own):
                    raise GraphFailed("TensorRT says that this engine cannot be captured")
                self._runtime.begin(own)
                try:
                    enqueued = context.execute_async_v3(own)
                finally:
                    self._graph = self._runtime.end(own)
            if not enqueued:
                raise GraphFailed("TensorRT could not enqueue the engine while it was captured")
            self._base = self._runtime.executable(self._graph, (), ())
            return results

    def give_to(self, current: torch.cuda.Stream) -> None:
        for tensor in (self._scratch, *self._results, *self._own.values()):
            tensor.record_stream(current)

    def close(self) -> None:
        """Wait for the last launch and let go of the graph; the context's memory is free to go then."""
        torch.cuda.current_stream(self._device).synchronize()
        self._forget()

    def _with_other_addresses(
        self, tensors: Sequence[torch.Tensor], results: list[torch.Tensor], key: tuple[int, ...], stream: int
    ) -> list[torch.Tensor]:
        moved = [
            (index, tensors[index])
            for (index, _), address in zip(self._used, key)
            if index not in self._own and address != self._addresses[index]
        ]
        if moved:
            torch.cuda.current_stream(self._device).synchronize()  # the context changes: no launch may be under way
            for index, tensor in moved:
                self._own[index] = _buffer(tensor.shape, tensor.dtype, self._device)
            return self.capture(tensors, stream)
        if key in self._seen and -1 not in key and self._credit >= 1:
            self._credit -= 1
            self._launch(self._executable(key, tensors, results), stream)
            return results
        self._credit = min(self._credit + 1 / _PATIENCE, 2 * _EXECUTABLES)
        self._seen[key] = None
        while len(self._seen) > _RECENT:
            self._seen.popitem(last=False)
        for index, own in self._own.items():
            own.copy_(tensors[index].detach())
        assert self._base is not None
        self._launch(self._base, stream)
        for result, buffer in zip(results, self._results):
            result.copy_(buffer)
        return results

    def _executable(
        self, key: tuple[int, ...], tensors: Sequence[torch.Tensor], results: Sequence[torch.Tensor]
    ) -> int:
        """The graph with the copies from and to the addresses of ``key`` in it."""
        assert self._graph is not None
        before = [(own.data_ptr(), tensors[index].data_ptr(), own.nbytes) for index, own in self._own.items()]
        after = [(r.data_ptr(), buffer.data_ptr(), r.nbytes) for r, buffer in zip(results, self._results) if r.nbytes]
        made = self._runtime.executable(self._graph, before, after)
        while len(self._executables) >= _EXECUTABLES:
            self._runtime.destroy_executable(self._executables.popitem(last=False)[1])
        self._executables[key] = made
        return made

    def _launch(self, executable: int, stream: int) -> None:
        code = self._start(executable, stream)
        if code:
            raise self._not_launched(code)

    def _not_launched(self, code: int) -> RuntimeError:
        return RuntimeError(f"The CUDA graph could not be launched: {self._runtime.message(code)}.")

    def _forget(self) -> None:
        executables = [*self._executables.values(), *([self._base] if self._base is not None else [])]
        self._executables.clear()
        self._seen.clear()
        graph, self._base, self._graph = self._graph, None, None
        for executable in executables:
            self._runtime.destroy_executable(executable)
        if graph is not None:
            self._runtime.destroy(graph)

    def __del__(self) -> None:
        if getattr(self, "_process", None) == os.getpid():  # a forked child has a copy of this, and no CUDA
            self._forget()


def _buffer(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory that outlives the call in which it is made, and the torch.inference_mode() of it."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device=device)


def _direct(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.data_ptr() % _ALIGNMENT


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def allocator(device: torch.device) -> Any:
    """``new(shape, strides, dtype)``: a new tensor on ``device``, where torch has it in a third of the usual time."""
    quick = getattr(torch._C._dynamo.guards, "_empty_strided_cuda", None) if hasattr(torch._C, "_dynamo") else None
    if quick is not None and device.type == "cuda" and torch.cuda.device_count() == 1:
        return quick  # on the current device, which is the only one

    def new(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)

    return new


capturing: Any = getattr(torch._C, "_cuda_isCurrentStreamCapturing", torch.cuda.is_current_stream_capturing)
