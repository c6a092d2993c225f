"""A captured model with some layers raised to a higher precision, run by PyTorch: what its results would be.

PyTorch computes fp16 and bf16 as they are, with their range and their roundings, on the CPU as on a GPU. So the program
with its casts shows what a precision costs, and nothing has to be built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ..batch_norm import fold_batch_norm
from ..capture import CapturedModel
from ..fx_nodes import is_float, module_path, operator_name
from ..operator_classes import LOW, VIEWS
from ..precision import Precision, cast_program
from ..quantization.graph import is_dequantize, is_quantize
from ..reproducible import reproducible
from ..runtime.checking import InputCheck
from ..runtime.cpu import CheckedExecution
from ..runtime.program import run_callable
from ..verify import Tolerance, compare
from .replay import Eager, errors_of

_NO_LIMIT = Tolerance(math.inf, math.inf, math.inf)


Quantize = Callable[[Precision], tuple[CapturedModel, Precision]]
"""The captured model as a precision wants it, quantized where that is int8 or fp8, and the precision, complete."""


class Candidates:
    """What becomes of ``captured`` where layers have the precisions ``low`` and ``high``.

    Args:
        rest: what the products compute in that quantization leaves alone (attentions, the layers that make the
            results). A mapping then says so of each, as they do not compute in ``low``, and a plan of which too little
            does is refused. None leaves them to the default.

    Attributes:
        layers: the paths of the modules that compute anything in the low precision by themselves, in the graph's order.
            ``""`` is the model itself; a module counts without the modules in it.
    """

    def __init__(self, captured: CapturedModel, low: str, high: str, quantize: Quantize, rest: str | None = None):
        self._captured, self._low, self._high, self._quantize = captured, low, high, quantize
        self._folded = fold_batch_norm(captured.program)
        lowest = Precision.parse(low)
        self._lowest = self._program(lowest)
        self.layers = _quantized_layers(self._lowest) if lowest.quantized else _low_layers(self._lowest, lowest.dtype)
        left = _multiplying_layers(self._lowest) if lowest.quantized and rest is not None else ()
        self._left = {layer: rest for layer in left if layer not in self.layers}

    def mapping(self, raised: Iterable[str]) -> dict[str, str]:
        """The ``precision=`` in which the layers ``raised`` are high, and all others low."""
        raised = set(raised)
        if raised.issuperset(self.layers):
            return {"default": self._high if raised else self._low}
        found = {"default": self._high if "" in raised else self._low}
        layers = [*self.layers, *self._left]
        for layer in sorted(filter(None, layers), key=lambda path: path.count(".")):
            wanted = self._left.get(layer) or (self._high if layer in raised else self._low)
            if wanted != found[_around(layer, found)]:
                found[layer] = wanted
        return {"default": found["default"], **{layer: found[layer] for layer in layers if layer in found}}

    def module(self, raised: Iterable[str]) -> Candidate:
        """The candidate as a module that is called as the model is, on the model's device."""
        return Candidate(self._captured, self._program(Precision.parse(self.mapping(raised))))

    def alone(self, inputs: Sequence[torch.Tensor]) -> dict[str, float]:
        """The largest error that each layer makes by itself where it is low and all that it reads is eager's own:
        relative L2; infinity where that makes a NaN or Inf."""
        with reproducible(self._captured.device):
            whole, low = run_callable(self._folded), run_callable(self._lowest)
            calls = (node for node in self._folded.graph.nodes if node.op == "call_function")
            eager = Eager(whole.graph, {node.name for node in calls if is_float(node.meta.get("val"))})
            eager.run(*whole.arguments(inputs), enable_io_processing=False)
            alone = _Alone(low.graph, eager.tensors)
            alone.run(*low.arguments(inputs), enable_io_processing=False)
        return {layer: alone.errors.get(layer, 0.0) for layer in self.layers}

    def _program(self, precision: Precision) -> ExportedProgram:
        captured, precision = self._quantize(precision)
        program = self._folded if captured is self._captured else captured.program
        return cast_program(program, precision).program


def error_against(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> float:
    """The largest relative L2 of any result, infinity where one has a NaN or Inf that eager's has not; of a result of
    integers, the share of elements that differ."""
    rows = [compare("", "", wanted, given, _NO_LIMIT) for wanted, given in zip(expected, actual, strict=True)]
    errors = [row.relative_l2 if math.isnan(row.unequal) else row.unequal for row in rows]
    return math.inf if any(row.new_nonfinite for row in rows) else max(errors, default=0.0)


class Candidate(nn.Module):
    """A program as a module; what it is called with is checked as a compiled module checks it."""

    def __init__(self, captured: CapturedModel, program: ExportedProgram):
        super().__init__()
        self.device = captured.device
        self._signature = captured.signature
        self._constants = tuple(tensor.to(captured.device) for tensor in captured.constants)
        self.run_flat = CheckedExecution(InputCheck(captured.signature, captured.device), run_callable(program))
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = self._signature.bind(args, kwargs)
        return self._signature.assemble(self.run_flat(tensors), tensors, self._constants)


class _Alone(torch.fx.Interpreter):
    """Runs a cast graph, every node on eager's results of the nodes before; ``errors`` has the largest by module."""

    def __init__(self, graph: torch.fx.GraphModule, eager: Mapping[str, torch.Tensor]):
        super().__init__(graph)
        self._eager = eager
        self.errors: dict[str, float] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "call_function" or n.name not in self._eager or not is_float(value):
            return value
        wanted = self._eager[n.name].to(value.device)
        if operator_name(n) not in VIEWS:
            place = module_path(n)
            self.errors[place] = max(self.errors.get(place, 0.0), _told(errors_of(value, wanted)[1]))
        return wanted.to(value.dtype)


def _told(error: float) -> float:
    return 0.0 if math.isnan(error) else error


def _low_layers(program: ExportedProgram, low: torch.dtype) -> tuple[str, ...]:
    """The modules with an operator of their own, no view and no cast, whose result is low."""
    found: dict[str, None] = {}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and is_float(value) and value.dtype == low:
            if operator_name(node) not in VIEWS and operator_name(node) != "_to_copy":
                found[module_path(node)] = None
    return tuple(found)


def _quantized_layers(program: ExportedProgram) -> tuple[str, ...]:
    """The modules with an operator of their own that takes quantized numbers."""
    readers = (n for n in program.graph.nodes if any(map(_dequantizes, n.all_input_nodes)) and not is_quantize(n))
    return tuple(dict.fromkeys(map(module_path, readers)))


def _multiplying_layers(program: ExportedProgram) -> tuple[str, ...]:
    """The modules with a matrix product, a convolution, an attention or a recurrent layer of their own."""
    products = LOW - {"embedding", "prelu", "_prelu_kernel"}
    return tuple(dict.fromkeys(module_path(node) for node in program.graph.nodes if operator_name(node) in products))


def _dequantizes(node: torch.fx.Node) -> bool:
    """Whether ``node`` dequantizes, or casts what does."""
    while operator_name(node) == "_to_copy":
        node = node.all_input_nodes[0]
    return is_dequantize(node)


def _around(path: str, named: Mapping[str, str]) -> str:
    """The innermost of ``named`` that holds ``path``."""
    while "." in path:
        path = path.rpartition(".")[0]
        if path in named:
            return path
    return "default"
