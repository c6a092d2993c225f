"""What ``precision="fp16"`` means, once, for every route: it is written into the captured graph.

The graph that comes out says the dtype of every operator. So the strongly typed networks of TensorRT 11 and TensorRT
for RTX compute in it, and older ones too; no builder flag takes part. Inputs and results keep the dtypes that the
user's model has; which operator runs in which dtype is decided in :mod:`.casting`. With int8 and fp8 the graph holds
the quantization already (see :mod:`.quantization`), and the precision written here is that of the other operators.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Graph, Node

from .casting import Caster
from .errors import InvalidFile, InvalidOption, nearest
from .export_lock import export_lock
from .fx_nodes import operator_name, retyped
from .layer_rules import Assignment, Rule, bind, parse_rules

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_QUANTIZED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_ALIASES = {
    **{name: name for name in (*_DTYPES, *_QUANTIZED)},
    **{"float32": "fp32", "float": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"},
    **{"qint8": "int8", "float8": "fp8", "float8_e4m3fn": "fp8"},
}
_BY_ERROR = ("fp32", "fp16", "bf16", "fp8", "int8")
_CHOICE = "choose 'fp32', 'fp16', 'bf16', 'int8' or 'fp8'"


@dataclasses.dataclass(frozen=True)
class Precision:
    """The precision that a module is compiled for: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``.

    ``rules`` are the layers that are to have another one (see :mod:`.layer_rules`). ``other`` is for int8 and fp8
    alone: the precision of the operators that are not quantized, ``"fp32"``, ``"fp16"`` or ``"bf16"``; None until it is
    known where the module is to run (:meth:`at`).

    >>> Precision.parse(torch.float16)
    Precision(name='fp16')
    >>> Precision.parse("bfloat16").dtype
    torch.bfloat16
    >>> str(Precision("int8", other="fp16")), Precision("int8", other="fp16").dtype
    ('int8', torch.float16)
    >>> str(Precision.parse({"default": "fp16", "encoder.layer.0": "fp32", torch.nn.Linear: "bf16"}))
    'fp16; encoder.layer.0: fp32; Linear: bf16'
    """

    name: str
    rules: tuple[Rule, ...] = ()
    other: str | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in _DTYPES and name not in _QUANTIZED:
                raise InvalidOption(f"Precision(name={name!r}): {_CHOICE}.")
        if self.other is not None and (self.other not in _DTYPES or not self.quantized):
            raise InvalidOption(
                f"Precision({self.name!r}, other={self.other!r}): with 'int8' and 'fp8', other may be 'fp32', 'fp16' or"
                " 'bf16'; without them, leave it out."
            )

    @classmethod
    def parse(cls, value: Any) -> Precision:
        """The precision that ``value`` names: a Precision, a name (``"fp16"``, ``"half"``, ...), a torch dtype, or a
        mapping of layers to such names, ``{"default": "fp16", "encoder.layer.0": "fp32", nn.Conv2d: "bf16"}``.

        Raises:
            InvalidOption: for any other value; the message has the nearest name.
        """
        if isinstance(value, Precision):
            return value
        if isinstance(value, Mapping):
            return cls(*parse_rules(value, _name))
        return cls(_name(value))

    def bind(self, graph: Graph, model: torch.nn.Module | None) -> Precision:
        """The same for one model: its classes are known, and every rule is seen to name something.

        Raises:
            InvalidOption: a rule names nothing in ``graph``; with the nearest names.
        """
        return dataclasses.replace(self, rules=bind(self.rules, graph, model)) if self.rules else self

    def at(self, needs_plan: bool, other: str | None = None) -> Precision:
        """The same with ``other`` decided: what is asked for; else the default's own precision; else, where that is
        quantized, fp16 in TensorRT plans and fp32 on the CPU, where ONNX Runtime's kernels give that."""
        if not self.quantized:
            return self
        own = self.name if self.name in _DTYPES else "fp16" if needs_plan else "fp32"
        return dataclasses.replace(self, other=other or self.other or own)

    def of(self, node: Node) -> str:
        """The name of the precision that ``node``, of a captured graph, was asked to have."""
        return self._assignment(node)

    def low_of(self, node: Node) -> torch.dtype:
        """The dtype of ``node`` where it is a matrix product or a convolution that is not quantized."""
        return self._dtype_of(self.of(node))

    @property
    def names(self) -> tuple[str, ...]:
        """The precisions that were asked for, each once, the default first."""
        return tuple(dict.fromkeys((self.name, *(rule.precision for rule in self.rules))))

    @property
    def narrowest(self) -> str:
        """The one of :attr:`names` with the largest error."""
        return max(self.names, key=_BY_ERROR.index)

    @property
    def quantized(self) -> bool:
        """Whether matrix products and convolutions take quantized numbers, which have scales beside them."""
        return any(name in _QUANTIZED for name in self.names)

    @property
    def dtype(self) -> torch.dtype:
        """The default's dtype of the matrix products and convolutions that are not quantized."""
        return self._dtype_of(self.name)

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The dtypes of all matrix products and convolutions that are not quantized."""
        return frozenset(map(self._dtype_of, self.names))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what has its default."""
        rules = {"rules": [rule.to_dict() for rule in self.rules]} if self.rules else {}
        return {"name": self.name, **rules, **({"other": self.other} if self.other is not None else {})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Precision:
        """The precision that :meth:`to_dict` wrote.

        Raises:
            InvalidFile: the data is not what :meth:`to_dict` writes.
        """
        try:
            return cls(data["name"], tuple(map(Rule.from_dict, data.get("rules", ()))), other=data.get("other"))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidFile(f"The saved precision is damaged: {type(error).__name__}: {error}.") from None

    def _dtype_of(self, name: str) -> torch.dtype:
        return _DTYPES[(self.other or "fp16") if name in _QUANTIZED else name]

    @functools.cached_property
    def _assignment(self) -> Assignment:
        return Assignment(self.name, self.rules)

    def __str__(self) -> str:
        return "; ".join([self.name, *map(str, self.rules)])

    def __repr__(self) -> str:
        rules = f", rules={self.rules!r}" if self.rules else ""
        other = f", other={self.other!r}" if self.other is not None else ""
        return f"Precision(name={self.name!r}{rules}{other})"


def _name(value: Any) -> str:
    """The name of the one precision that ``value`` is. Raises InvalidOption, with the nearest name."""
    name = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    if isinstance(name, str) and name.lower() in _ALIASES:
        return _ALIASES[name.lower()]
    if name == "fastest":
        raise InvalidOption("precision='fastest' measures on the GPU that is here: it is for compile() alone.")
    hint = nearest(name.lower(), _ALIASES) if isinstance(name, str) else ""
    raise InvalidOption(f"precision={value!r} is unknown; {_CHOICE}.{hint}")


@dataclasses.dataclass(frozen=True, eq=False)
class CastResult:
    """A program with its precision written into it.

    ``kept`` maps operators that stayed in float32 (``"aten.layer_norm"``) to the paths of the modules they are in (the
    user's names; ``""`` is the model itself). ``notes`` are sentences for the report.
    """

    program: ExportedProgram
    kept: Mapping[str, list[str]]
    notes: tuple[str, ...] = ()


def cast_program(program: ExportedProgram, precision: Precision) -> CastResult:
    """``program`` in ``precision``, with batch normalization folded into the layers before it.

    ``program`` is functional and its modules are under the attribute ``model`` (see :mod:`.capture`); it is not
    changed. The new one has the same placeholders, parameter names, dynamic shapes and result dtypes. Tensors that do
    not change are shared by both programs.
    """
    with export_lock:
        return _cast(fold_batch_norm(program), precision)


def _cast(folded: ExportedProgram, precision: Precision) -> CastResult:
    tensors = _constants(folded)
    caster = Caster(folded.graph, {name: tensor for name, (_, tensor) in tensors.items()}, precision.low_of)
    graph = caster.run()
    state, clamped = _store(tensors, caster.stored)
    notes = list(caster.notes)
    if clamped:
        notes.append(f"values beyond the range of {precision.name} were clamped in {', '.join(clamped)}")
    for node in graph.find_nodes(op="placeholder"):
        if node.name in state:
            node.meta["val"] = retyped(node.meta["val"], state[node.name].dtype)
    return CastResult(rebuild(folded, graph, state), caster.kept, tuple(notes))


def fold_batch_norm(program: ExportedProgram) -> ExportedProgram:
    """``program`` with each batch normalization in its inference form folded into the layer before it.

    That layer is a convolution, transposed or not, or a linear layer, whose weight is a parameter of its own and whose
    result nobody else reads. Its new weight and bias are computed in float32 at least, and kept so; in a model of
    fewer bits a cast follows. They are stored under names that exist already: a layer without a bias takes over that of
    the normalization, or its running mean. Returns ``program`` itself where there is nothing to fold.
    """
    graph = copy.deepcopy(program.graph)
    tensors = _constants(program)
    state: dict[str, torch.Tensor] = {}
    for norm in list(graph.nodes):
        if norm.op == "call_function" and operator_name(norm) in _BATCH_NORMS:
            state.update(_fold(norm, {**tensors, **{n: (tensors[n][0], t) for n, t in state.items()}}))
    return rebuild(program, graph, state) if state else program


_BATCH_NORMS = frozenset({
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
})  # fmt: skip
_LAYERS = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "linear",
})  # fmt: skip
_Constants = Mapping[str, tuple[InputSpec, torch.Tensor]]


def _constants(program: ExportedProgram) -> dict[str, tuple[InputSpec, torch.Tensor]]:
    """The tensors that the graph takes besides the user's inputs, by the names of their placeholders."""
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            holder = program.state_dict if spec.target in program.state_dict else program.constants
            found[spec.arg.name] = spec, holder[spec.target]  # type: ignore[union-attr]
    return found


def _fold(norm: Node, tensors: _Constants) -> dict[str, torch.Tensor]:
    """Fold ``norm`` into the layer before it, in its graph; the new tensors by placeholder, none where it cannot be."""
    call = _call(norm)
    layer = call["input"]
    if call.get("training") or not isinstance(layer, Node) or operator_name(layer) not in _LAYERS:
        return {}
    inner = _call(layer)
    weight, bias = inner["weight"], inner["bias"]
    mean, variance, gamma, beta = (call[name] for name in ("running_mean", "running_var", "weight", "bias"))
    # where the new bias is stored
    home, owner = (bias, layer) if bias is not None else (beta if beta is not None else mean, norm)
    results = _first_results(norm)
    fits = (
        list(layer.users) == [norm]
        and _belongs(weight, layer, tensors)
        and _belongs(home, owner, tensors)
        and None not in (mean, variance)
        and all(n is None or n.name in tensors for n in (mean, variance, gamma, beta))
        # channels must be dimension 1 of the layer's result: no unbatched convolution, no linear layer on sequences
        and layer.meta["val"].ndim == weight.meta["val"].ndim
    )
    if not fits or not results:
        return {}

    def number(node: Node | None, otherwise: float) -> Any:
        return otherwise if node is None else tensors[node.name][1].detach().double()

    scale = number(gamma, 1) * (number(variance, 1) + call["eps"]).rsqrt()
    shift = number(beta, 0) + (number(bias, 0) - number(mean, 0)) * scale
    new = {weight.name: _scaled(tensors[weight.name][1].detach(), scale, layer, inner), home.name: shift}
    for node in dict.fromkeys([*results, norm]):
        node.replace_all_uses_with(layer)
        layer.graph.erase_node(node)
    wide = torch.promote_types(layer.meta["val"].dtype, torch.float32)
    layer.args = (layer.args[0], _held(weight, wide, layer), _held(home, wide, layer), *layer.args[3:])
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name not in ("weight", "bias")}
    return {name: tensor.to(wide) for name, tensor in new.items()}


def _belongs(constant: Any, owner: Node, tensors: _Constants) -> bool:
    """Whether ``constant`` is a stored tensor that ``owner`` alone reads, so that its value may change."""
    return isinstance(constant, Node) and constant.name in tensors and list(constant.users) == [owner]


def _call(node: Node) -> dict[str, Any]:
    """Every argument of an operator by name, defaults among them."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    call = {a.name: a.default_value if a.has_default_value() else None for a in schema}
    return {**call, **dict(zip(call, node.args)), **node.kwargs}


def _first_results(norm: Node) -> list[Node]:
    """The nodes that hold the normalized tensor; none where the statistics, too, have a reader."""
    if isinstance(norm.meta["val"], torch.Tensor):
        return [norm]
    readers = list(norm.users)
    first = all(n.target is operator.getitem and n.args[1] == 0 for n in readers)
    return readers if first else []


def _scaled(weight: torch.Tensor, scale: torch.Tensor, layer: Node, call: Mapping[str, Any]) -> torch.Tensor:
    """``weight`` with each output channel multiplied by its ``scale``."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = scale.to(weight.dtype)
    if not (operator_name(layer).startswith("conv_transpose") or call.get("transposed")):
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = call["groups"]  # a transposed weight is (in, out / groups, ...)
    grouped = weight.unflatten(0, (groups, -1)) * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return grouped.flatten(0, 1)


def _held(constant: Node, wide: torch.dtype, layer: Node) -> Node:
    """``constant``, held as ``wide`` from now on, as ``layer`` reads it: with a cast where that is in fewer bits."""
    narrow = layer.meta["val"].dtype
    constant.meta = {k: v for k, v in constant.meta.items() if k != "tensor_meta"}
    constant.meta["val"] = retyped(constant.meta["val"], wide)
    if narrow == wide:
        return constant
    with layer.graph.inserting_before(layer):
        cast = layer.graph.call_function(torch.ops.aten._to_copy.default, (constant,), {"dtype": narrow})
    cast.meta = {k: v for k, v in layer.meta.items() if k in ("nn_module_stack", "stack_trace")}
    cast.meta["val"] = retyped(constant.meta["val"], narrow)
    return cast


def _store(
    tensors: _Constants, stored: Mapping[str, tuple[torch.dtype, float | None]]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors that change, by placeholder, and the names of those parameters that lose values to the range.

    Tied parameters stay tied, also where the graph reads only one of the names.
    """
    changed: dict[str, torch.Tensor] = {}
    clamped: list[str] = []
    done: dict[Any, torch.Tensor] = {}
    plans = {_identity(tensors[name][1]): plan for name, plan in stored.items()}
    for name, (spec, tensor) in tensors.items():
        dtype, bound = stored.get(name) or plans.get(_identity(tensor), (tensor.dtype, None))
        if dtype == tensor.dtype:
            continue
        key = (_identity(tensor), dtype, bound)
        if key not in done:
            done[key] = tensor.detach().to(dtype)
            if bool((done[key].isinf() & tensor.isfinite()).any()):
                limit = bound or torch.finfo(dtype).max
                done[key] = torch.where(tensor.isinf(), tensor, tensor.clamp(-limit, limit)).detach().to(dtype)
                if spec.kind == InputKind.PARAMETER:
                    clamped.append(str(spec.target).removeprefix("model."))
        changed[name] = done[key]
    return changed, clamped


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def rebuild(program: ExportedProgram, graph: Graph, tensors: Mapping[str, torch.Tensor]) -> ExportedProgram:
    """A program like ``program`` with another graph, and with ``tensors``, by placeholder, in place of its own."""
    signature = copy.deepcopy(program.graph_signature)
    results = graph.find_nodes(op="output")[0].args[0]
    signature.output_specs = [
        dataclasses.replace(spec, arg=dataclasses.replace(spec.arg, name=result.name))
        if isinstance(result, Node)
        else spec
        for spec, result in zip(signature.output_specs, results)
    ]
    state, constants = dict(program.state_dict), dict(program.constants)
    for spec in signature.input_specs:
        tensor = tensors.get(getattr(spec.arg, "name", ""))
        if tensor is None:
            continue
        assert spec.target is not None
        if spec.kind == InputKind.PARAMETER:
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        (state if spec.target in state else constants)[spec.target] = tensor
    # the subgraphs of higher-order operators belong to one program each: later passes edit them in place
    held = {n.target: copy.deepcopy(operator.attrgetter(n.target)(program.graph_module)) for n in graph.nodes
            if n.op == "get_attr"}  # fmt: skip
    module = torch.fx.GraphModule(held, graph)
    module.meta.update(program.graph_module.meta)
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=signature,
        state_dict=state,
        range_constraints=dict(program.range_constraints),
        module_call_graph=[
            dataclasses.replace(entry, signature=copy.copy(entry.signature)) for entry in program.module_call_graph
        ],
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )
