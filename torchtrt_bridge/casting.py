"""The casts that make each operator of a captured graph run in its dtype: the graph written anew, node by node.

What decides is in :mod:`.dtype_choice`. Operators of other libraries and higher-order operators (``cond``) run **as
captured**: nothing is known of what they take, so they get the dtypes that they were captured with. An opaque call of
a **converter** runs in what its registration says (:class:`.registry.Registration`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.utils import _pytree

from .casts import Casts
from .dtype_choice import DtypeChoice, Trait
from .forms import call_of
from .fx_nodes import (
    dtypes,
    is_float,
    is_plain_float_cast,
    map_numbers,
    module_path,
    operator_name,
    retyped,
    tensor_nodes,
)
from .operator_classes import LOW, runs_fp32
from .quantization.graph import is_dequantize, is_quantize, set_result_dtype
from .registry import Registration

aten = torch.ops.aten

_SINGLE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float64: torch.float32,
    torch.complex32: torch.complex64,
    torch.complex128: torch.complex64,
}


class Caster:
    """Writes precisions into a copy of a captured graph. ``run()`` once, then read the attributes.

    Args:
        graph: the graph of an exported program; it is read only.
        constants: the tensors of those placeholders that are parameters, buffers or constants, by placeholder name.
        low_of: the dtype of each node where it belongs to the low class; float32 leaves it one class, float32.

    Attributes:
        stored: for each constant's placeholder name, the dtype to store it in and the bound to clamp it to, if any.
        kept: operators that run in float32 next to a low stream, with the paths of their modules.
        notes: what else a reader of the report should know.
    """

    def __init__(self, graph: Graph, constants: Mapping[str, torch.Tensor], low_of: Callable[[Node], torch.dtype]):
        self.source, self.graph = graph, Graph()
        self.stored: dict[str, tuple[torch.dtype, float | None]] = {}
        self.kept: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._tensors, self._low_of = constants, low_of
        self._new: dict[Node, Node] = {}
        self._choice = DtypeChoice(graph, low_of)
        self._casts = Casts(self.graph, self._choice.constants, self._choice.lows)

    def run(self) -> Graph:
        """The new graph. Its placeholders and results have the dtypes of the old one's."""
        for node in self.source.nodes:
            self._casts.consumer = node
            if getattr(node.meta.get("val"), "dtype", None) is torch.float64 and node.users:
                self._note("float64 is computed in float32")
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                self._output(node)
            elif node.target is not aten._assert_tensor_metadata.default:  # checks the dtypes that change here
                self._new[node] = self._operator(node) if node.op == "call_function" else self._copy(node)
        self.graph.eliminate_dead_code()
        self.stored = self._casts.store_constants()
        return self.graph

    # -- the nodes of the old graph ------------------------------------------------------------------------------------

    def _placeholder(self, node: Node) -> None:
        new = self._new[node] = self._copy(node)
        value, tensor = node.meta.get("val"), self._tensors.get(node.name)
        if value is None or not is_float(value):
            self._choice.traits[new] = Trait.TABLE
        elif tensor is None:
            self._choice.traits[new] = Trait.OPEN
        else:
            self._choice.constants[new] = tensor
            self._choice.traits[new] = Trait.TABLE if sum(size > 1 for size in tensor.shape) <= 1 else Trait.NONE
            new.meta.pop("tensor_meta", None)
            new.meta["val"] = retyped(value, torch.float32)  # until store_constants knows who reads it

    def _output(self, node: Node) -> None:
        def result(old: Node) -> Node:
            value: Any = old.meta.get("val")
            self._casts.consumer = old
            return self._casts.cast(self._new[old], value.dtype) if is_float(value) else self._new[old]

        new = self.graph.output(torch.fx.map_arg(node.args[0], result))
        new.meta = dict(node.meta)

    def _operator(self, node: Node) -> Node:
        target = node.target
        if target is operator.getitem:
            return self._getitem(node)
        if not isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
            return self._copy(node)  # arithmetic on sizes
        call = call_of(target)
        if call is not None and call.registration is not None:
            return self._converted(node, call.registration)
        if is_quantize(node) or is_dequantize(node):
            return self._quantization(node)
        # view.dtype reads the bits of its input, so they must stay what they are
        if getattr(target, "namespace", "") != "aten" or target is aten.view.dtype:
            self._note(f"{target} in {module_path(node) or 'the model'} runs in the precision of the model")
            return self._as_captured(node)
        if not any(isinstance(v, torch.Tensor) for v in _pytree.tree_leaves(node.meta.get("val"))):
            return self._copy(node)  # a size or an assertion
        return self._aten(node)

    def _aten(self, node: Node) -> Node:
        name = operator_name(node)
        if name == "_to_copy" and is_plain_float_cast(node):
            return self._user_cast(node)
        low = self._low_of(node)
        inputs = [self._new[n] for n in tensor_nodes(node)]
        floats = [n for n in inputs if is_float(n.meta["val"])]
        dtype = self._choice.dtype(node, name, floats)
        bounds = self._choice.bounds(node, name, dtype, self._new)

        def argument(old: Node) -> Node:
            new = self._new[old]
            return self._casts.cast(new, dtype, bounds.get(new)) if new in floats else new

        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), argument)
        if dtype == low != torch.float32:
            args, kwargs = map_numbers(node, args, kwargs, functools.partial(self._choice.clamp, node))
        args, kwargs = self._normalize_dtypes(node, args, kwargs)
        new = self._emit(node, args, kwargs, dtype)
        self._choice.traits[new] = self._choice.result_traits(node, name, inputs, dtype)
        delicate = any(map(self._choice.is_low, floats)) or name in LOW or runs_fp32(node, name, low)
        if floats and dtype == torch.float32 != low and delicate:
            paths = self.kept.setdefault(f"aten.{name}", [])
            if module_path(node) not in paths:
                paths.append(module_path(node))
        return new

    def _user_cast(self, node: Node) -> Node:
        """The model's own cast between float types.

        One to a type other than float32 says which precision the model had; the one asked for takes its place.
        ``x.float()`` says that what follows needs float32, and stays.
        """
        source = self._new[node.args[0]]  # type: ignore[index]
        if node.kwargs["dtype"] is not torch.float32:
            return source
        new = self._casts.cast(source, torch.float32)
        if new is not source:
            self._choice.traits[new] = self._choice.traits[source] & Trait.TABLE
        return new

    def _getitem(self, node: Node) -> Node:
        parent = self._new[node.args[0]]  # type: ignore[index]
        new = self._copy(node)
        new.meta["val"] = parent.meta["val"][node.args[1]]
        self._choice.traits[new] = self._choice.traits.get(parent, Trait.NONE)
        return new

    def _converted(self, node: Node, registration: Registration) -> Node:
        """An opaque call of a converter, its float inputs all in one dtype; its ATen form says what it gives then."""
        low, precision = self._low_of(node), registration.precision
        floats = [n for n in map(self._new.__getitem__, tensor_nodes(node)) if is_float(n.meta["val"])]
        lowered = precision == "low" or (precision == "follow" and any(map(self._choice.is_low, floats)))
        dtype = low if lowered else torch.float32

        def argument(old: Node) -> Node:
            new = self._new[old]
            return self._casts.cast(new, dtype) if new in floats else new

        new = self._emit(node, torch.fx.map_arg(node.args, argument), {}, dtype)
        if floats and dtype == torch.float32 != low:
            self.kept.setdefault(str(registration.target), []).append(module_path(node))
        return new

    def _quantization(self, node: Node) -> Node:
        """A tensor is quantized from whatever dtype it has, and dequantized to the low one; scales stay float32."""
        new = self._copy(node)
        if is_dequantize(node):
            low = self._low_of(node)
            set_result_dtype(new, low)
            new.meta["val"] = retyped(node.meta["val"], low)
            new.meta.pop("tensor_meta", None)
        return new

    def _as_captured(self, node: Node) -> Node:
        def argument(old: Node) -> Node:
            value: Any = old.meta.get("val")
            return self._casts.cast(self._new[old], value.dtype) if is_float(value) else self._new[old]

        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), argument)
        new = self.graph.create_node("call_function", node.target, args, kwargs, name=node.name)
        new.meta = dict(node.meta)
        return new

    def _copy(self, node: Node) -> Node:
        new = self.graph.node_copy(node, self._new.__getitem__)
        new.meta = dict(node.meta)
        return new

    def _normalize_dtypes(self, node: Node, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """float32 for every other float type that the operator names, or would take from the default dtype."""
        args, kwargs = _pytree.tree_map(
            lambda v: _SINGLE.get(v, v) if isinstance(v, torch.dtype) else v, (args, dict(kwargs))
        )
        if not tensor_nodes(node) and is_float(node.meta["val"]) and kwargs.get("dtype") is None:
            if any(a.name == "dtype" for a in node.target._schema.arguments):  # type: ignore[union-attr]
                kwargs["dtype"] = torch.float32
        return args, kwargs

    def _emit(self, node: Node, args: Any, kwargs: Any, dtype: torch.dtype) -> Node:
        """``node`` with other arguments in the new graph; what its result is follows from their dtypes."""
        new = self.graph.create_node("call_function", node.target, args, kwargs, name=node.name)
        new.meta = dict(node.meta)
        old_types = [n.meta["val"].dtype for n in tensor_nodes(node)] + dtypes(node.args, node.kwargs)
        new_types = [n.meta["val"].dtype for n in tensor_nodes(new)] + dtypes(args, kwargs)
        if old_types != new_types:
            new.meta["val"] = _result(node, args, kwargs, dtype)
            new.meta.pop("tensor_meta", None)
        return new

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _result(node: Node, args: Any, kwargs: Any, dtype: torch.dtype) -> Any:
    """The value of ``node`` for arguments of other dtypes: the captured one, with the dtypes that the operator gives.

    The operator is asked on fake tensors of the example's sizes, in a mode of their own: the captured program's symbols
    see nothing of it. Where sizes depend on data there is no example; then its float results have the dtype that it
    computes in.
    """
    leaves, structure = _pytree.tree_flatten(node.meta["val"])
    with FakeTensorMode():
        try:
            args, kwargs = torch.fx.map_arg((args, kwargs), lambda n: _pytree.tree_map(_example, n.meta["val"]))
            types = [getattr(v, "dtype", None) for v in _pytree.tree_leaves(node.target(*args, **kwargs))]  # type: ignore[operator]
        except Exception:
            types = [dtype if is_float(v) else None for v in leaves]
    pairs = zip(leaves, types, strict=True)
    return _pytree.tree_unflatten([v if t is None else retyped(v, t) for v, t in pairs], structure)


def _example(value: Any) -> Any:
    """A fake tensor or number of the size that the capture ran with."""
    if isinstance(value, torch.Tensor):
        size, stride = ([_example(v) for v in values] for values in (value.size(), value.stride()))
        return torch.empty_strided(size, stride, dtype=value.dtype, device=value.device)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        if value.node.hint is None:
            raise LookupError(f"{value} depends on data")
        return value.node.hint
    return value
