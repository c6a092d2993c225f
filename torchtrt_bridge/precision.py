"""What ``precision="fp16"`` means, once, for every route: it is written into the captured graph.

The graph that comes out says the dtype of every operator. So the strongly typed networks of TensorRT 11 and TensorRT
for RTX compute in it, and older ones too; no builder flag takes part. Inputs and results keep the dtypes that the
user's model has; which operator runs in which dtype is decided in :mod:`.casting`. With int8 and fp8 the graph holds
the quantization already (see :mod:`.quantization`), and the precision written here is that of the other operators.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

from .batch_norm import fold_batch_norm
from .casting import Caster
from .errors import InvalidFile, InvalidOption, nearest
from .export_lock import export_lock
from .fx_nodes import retyped
from .layer_rules import Assignment, Rule, bind, parse_rules
from .program_graph import Constants, constants_of, rebuild

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
    tensors = constants_of(folded)
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


def _store(
    tensors: Constants, stored: Mapping[str, tuple[torch.dtype, float | None]]
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
