"""From a captured program to TensorRT's network by Torch-TensorRT's lowering and converters.

Only the process that :mod:`.torch_tensorrt_child` describes imports this file: with it comes ``torch_tensorrt``.

Torch-TensorRT's own entry points are not used. They take a copy of the signature's work (names, dtypes and ranges of
inputs and results), lose some of it, and build an engine with a runtime in the way. Here its decompositions, lowering
passes and converters make the network; what goes in and comes out of the network is the Signature's, the builder's
configuration is :mod:`torchtrt_bridge.trt.builder`'s, and the plan is never loaded, so that no GPU is needed.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree
from torch_tensorrt import ENABLED_FEATURES
from torch_tensorrt.dynamo._settings import CompilationSettings
from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter
from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_CONVERTERS
from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor
from torch_tensorrt.dynamo.lowering import get_decompositions, post_lowering, pre_export_lowering
from torch_tensorrt.dynamo.lowering.passes import _aten_lowering_pass as passes

from ..errors import ConversionFailed, UnsupportedLayer
from ..program_graph import unguarded
from ..trt.flavor import Flavor
from ..trt.log import listening
from ..trt.request import HandwrittenFailed
from .torch_tensorrt_forms import admit_dynamic_shapes, amend, causal_of_two_lengths, spell_masks_out
from .torch_tensorrt_quantization import keep_quantized_weights

#: torch's dtypes that TensorRT has, by their names in both.
_DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool", "float8_e4m3fn")
_MARK = "torchtrt_bridge"
admit_dynamic_shapes()
keep_quantized_weights()
_IS_RTX = bool(getattr(ENABLED_FEATURES, "tensorrt_rtx", False))


def lower(program: ExportedProgram, settings: CompilationSettings) -> GraphModule:
    """``program`` in the operators that Torch-TensorRT's converters take. ``program`` itself may change.

    Raises:
        ConversionFailed: a decomposition or a pass failed.
    """
    try:
        spell_masks_out(program)
        program = pre_export_lowering(program, settings)
        try:
            decomposed = program.run_decompositions(_table(settings, every=True))
        except Exception:  # some of torch's forms write in place, which is refused here
            decomposed = program.run_decompositions(_table(settings, every=False))
        return post_lowering(unguarded(decomposed), settings)
    except Exception as error:
        raise ConversionFailed(
            f"The torch_tensorrt route cannot lower the model: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _table(settings: CompilationSettings, every: bool) -> dict[Any, Any]:
    wanted = inspect.signature(get_decompositions).parameters
    usual = get_decompositions(**{name: getattr(settings, name) for name in wanted})
    return amend(dict(usual), settings, every)


class Network(interpreter.TRTInterpreter):  # type: ignore[misc, name-defined]
    """The network of a lowered graph, with the inputs and results that the Signature names.

    Args:
        inputs, outputs: ``(name, dtype, shape)`` in order; -1 in a shape is a dynamic size.

    Attributes:
        network: TensorRT's ``INetworkDefinition``; its weights are those of the graph and of this object, which must
            both live until the plan is there.
        builder: the ``IBuilder`` that made it.
    """

    def __init__(
        self,
        bound: Flavor,
        graph: GraphModule,
        settings: CompilationSettings,
        inputs: Sequence[tuple[str, str, Sequence[int]]],
        outputs: Sequence[tuple[str, str, Sequence[int]]],
    ):
        DYNAMO_CONVERTERS.set_compilation_settings(settings)
        _refuse_unsupported(graph)
        places = {node: place(node) for node in graph.graph.nodes}
        for node in graph.graph.nodes:
            node.meta["nn_module_stack"] = _users_modules(node)  # for the names of layers; each name takes an item off
        interpreter.TRT_LOGGER = bound.logger  # type: ignore[attr-defined]
        super().__init__(graph, [], compilation_settings=settings)
        self._trt, self._wanted, self._given = bound.trt, tuple(outputs), iter(inputs)
        with listening() as messages:
            try:
                self._construct_trt_network_def()
            except HandwrittenFailed:  # which says more than is known here
                raise
            except Exception as error:
                why = f"{type(error).__name__}: {_first_line(error)}"
                said = "".join(f"\n  {text}" for text in list(messages.errors)[-3:])
                node = self._cur_node
                what = f"{operator_name(node)}{places[node]}" if node is not None else "the model"
                unsupported = isinstance(error, (NotImplementedError, interpreter.UnsupportedOperatorException))
                kind = UnsupportedLayer if unsupported else ConversionFailed
                raise kind(f"The torch_tensorrt route cannot convert {what}: {why}{said}") from error
        self.network = self.ctx.net

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, self._trt.ITensor):
                tuple(tensor.shape)  # raises where TensorRT refused the layer, which says so only in its log
        return value

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        name, dtype, shape = next(self._given)
        self._input_names.append(name)  # which converters of aliased results look at
        return self.ctx.net.add_input(name=name, shape=tuple(shape), dtype=getattr(self._trt, dtype))

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Each result under its name and in its dtype, also one that is an input, a constant or another result."""
        taken = {self.ctx.net.get_input(i).name for i in range(self.ctx.net.num_inputs)}
        results = args[0] if isinstance(args[0], (tuple, list)) else (args[0],)
        for value, (name, dtype, shape) in zip(results, self._wanted, strict=True):
            made = isinstance(value, self._trt.ITensor)
            tensor = value if made else get_trt_tensor(self.ctx, value, f"{name}_constant")
            wanted = getattr(self._trt, dtype)
            if tensor.dtype != wanted:
                tensor = self._layer(self.ctx.net.add_cast(tensor, wanted), f"cast_{name}")
            elif tensor.is_network_input or tensor.name in taken:
                tensor = self._layer(self.ctx.net.add_identity(tensor), f"copy_{name}")
            _check_shape(name, tuple(tensor.shape), shape)
            tensor.name = name
            taken.add(name)
            self.ctx.net.mark_output(tensor)
        return list(results)

    def _layer(self, layer: Any, name: str) -> Any:
        layer.name = name
        return layer.get_output(0)


def _check_shape(name: str, made: Sequence[int], wanted: Sequence[int]) -> None:
    """A converter that makes another shape than torch does computes something else."""
    if len(made) != len(wanted) or any(a != b for a, b in zip(made, wanted) if a >= 0 and b >= 0):
        raise ValueError(f"the result {name!r} is {list(made)} in TensorRT's network and {list(wanted)} in the model")


def refusals(program: ExportedProgram, settings: CompilationSettings) -> dict[str, str]:
    """The nodes of ``program`` that Torch-TensorRT's converters do not take, by name, and why. Nothing is computed:
    what constants alone determine counts as constant."""
    DYNAMO_CONVERTERS.set_compilation_settings(settings)
    for node in program.graph.nodes:
        node.meta["custom"] = {_MARK: node.name}  # which decompositions and passes hand on
    with _without_folding():
        graph = lower(program, settings)
    varies = _varying(graph)
    found: dict[str, str] = {}
    for node in graph.graph.nodes:
        reason = _refusal(node) if varies[node] else None
        if reason is not None and (origin := _origin(node)) is not None:
            found.setdefault(origin, reason)
    return found


def operator_name(node: Node) -> str:
    """``aten.linear.default``; for a primitive, the operator that it was in; for anything else, its own name."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "prims":
        return str(node.meta.get("original_aten") or node.target)
    return str(node.target) if isinstance(node.target, (str, torch._ops.OpOverload)) else _qualified(node.target)


def place(node: Node) -> str:
    """`` (in encoder.layer.3)``: the module of the user's that ``node`` comes from."""
    modules = list(_users_modules(node).values())
    return f" (in {modules[-1][0] if modules else 'the top module'})"


def _users_modules(node: Node) -> dict[str, Any]:
    """The stack of modules without the capture's own, and without the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    named = {key: (path.removeprefix("model").removeprefix("."), kind) for key, (path, kind) in stack.items()}
    return {key: (path, kind) for key, (path, kind) in named.items() if path}


def _refuse_unsupported(graph: GraphModule) -> None:
    refused = {node: reason for node in graph.graph.nodes if (reason := _refusal(node, types=False))}
    reasons = list(dict.fromkeys(f"{reason}{place(node)}" for node, reason in refused.items()))
    if reasons:
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise UnsupportedLayer(f"{'; '.join(reasons[:3])}{more}.")


def _refusal(node: Node, types: bool = True) -> str | None:
    """Why no converter takes ``node``; None where one does, and for what only picks a result of another."""
    if node.op not in ("call_function", "call_method", "call_module") or node.target is operator.getitem:
        return None
    name = operator_name(node)
    if _is_random(node) and not any(isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes):
        return f"torch_tensorrt draws the numbers of {name} once, while it converts"
    if causal_of_two_lengths(node):
        return f"torch_tensorrt puts the causal mask of {name} elsewhere, where queries and keys differ in number"
    converter = DYNAMO_CONVERTERS.get(node)
    if converter is not None and _IS_RTX and "needs_not_tensorrt_rtx" in getattr(converter[0], "__qualname__", ""):
        return f"torch_tensorrt has no converter for {name} to TensorRT for RTX"
    if converter is None:
        if DYNAMO_CONVERTERS.get_unvalidated(node.target) is None:
            return f"torch_tensorrt has no converter for {name}"
        return f"torch_tensorrt has no converter for {name} with these arguments or dynamic shapes"
    if types:
        for value in _pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and str(value.dtype).removeprefix("torch.") not in _DTYPES:
                return f"TensorRT has no {str(value.dtype).removeprefix('torch.')}, in which {name} computes"
    return None


def _varying(graph: GraphModule) -> dict[Node, bool]:
    """Whether each node depends on an input, or on chance."""
    varies: dict[Node, bool] = {}
    for node in graph.graph.nodes:
        changes = node.op == "placeholder" or _is_random(node)
        varies[node] = changes or any(varies[n] for n in node.all_input_nodes)
    return varies


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _origin(node: Node) -> str | None:
    """The captured node that ``node`` stands for; a pass may have made it without a mark, but not all around it."""
    seen, queue = {node}, [node]
    for candidate in queue:
        mark = (candidate.meta.get("custom") or {}).get(_MARK)
        if mark is not None:
            return str(mark)
        near = [n for n in (*candidate.all_input_nodes, *candidate.users) if n not in seen and n.op != "placeholder"]
        seen.update(near)
        queue.extend(near)
    return None


@contextlib.contextmanager
def _without_folding() -> Iterator[None]:
    """Within, lowering leaves constants as the operators that make them."""
    chosen = passes.ATEN_POST_LOWERING_PASSES
    kept = [step for step in passes.post_lowering_pass_list if step.__name__ != "constant_fold"]
    passes.ATEN_POST_LOWERING_PASSES = passes.DynamoPassManager.build_from_passlist(kept)
    try:
        yield
    finally:
        passes.ATEN_POST_LOWERING_PASSES = chosen


def _qualified(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
