"""What a compiled module takes and gives: names, dtypes, shapes and ranges, and the structure around the tensors.

A :class:`Signature` is made once, at capture, and goes with the module into its file. It binds a call's arguments to
the engine's flat inputs and builds the result from the engine's flat outputs; no other part of the package looks
inside a user's argument or result.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .errors import FixedArgumentChanged, InvalidFile, InvalidInput, InvalidOption
from .expressions import evaluate, names
from .structure import Node, Unstorable, check, describe, leaves, rebuild


@dataclasses.dataclass(frozen=True, eq=False)
class Dim:
    """The sizes that one dimension of an input may have: ``min <= size <= max``, tuned for ``opt``.

    The same ``Dim`` object, or two with the same ``name``, in several places means: always equal there.

    Raises:
        InvalidOption: unless ``0 <= min <= opt <= max`` and ``max >= 1``.
    """

    min: int
    opt: int
    max: int
    name: str | None = None

    def __post_init__(self) -> None:
        sizes = (self.min, self.opt, self.max)
        if not all(type(size) is int for size in sizes) or not 0 <= self.min <= self.opt <= self.max or self.max < 1:
            raise InvalidOption(f"{self!r}: a Dim needs integers with 0 <= min <= opt <= max and max >= 1.")
        if self.name is not None and not self.name.isidentifier():
            raise InvalidOption(f"{self!r}: a Dim's name must be a Python identifier.")


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One flat tensor: its name (a dotted path into the arguments), dtype (``"float32"``) and shape.

    A size is an int, or a string: an expression in the names of :attr:`Signature.dims` (``"batch"``, ``"8*width"``),
    or ``"?"`` where it depends on the data.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of the model's ``forward``: ``kind`` is inspect's (``"POSITIONAL_OR_KEYWORD"``), ``default`` a
    node of its default, or None where there is none, or none that a file can hold (``opaque_default``)."""

    name: str
    kind: str
    default: Node | None = None
    opaque_default: bool = False


@dataclasses.dataclass(frozen=True)
class Signature:
    """The interface of a compiled module.

    ``arguments`` maps the names of ``forward``'s parameters to nodes (see :mod:`.structure`) whose leaves are indices
    into ``inputs``. ``result`` is a node whose leaves are ``{"output": i}``, ``{"input": i}`` (a returned argument),
    ``{"constant": i}`` (a returned buffer or parameter) or ``{"size": expression}`` (a number made from shapes).
    ``writes`` are pairs ``(i, o)``: the model leaves in input ``i`` what output ``o`` holds.
    """

    parameters: tuple[Parameter, ...]
    arguments: Mapping[str, Node]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    result: Node
    dims: Mapping[str, Dim]
    writes: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            "parameters": [dataclasses.asdict(p) for p in self.parameters],
            "arguments": [[name, node] for name, node in self.arguments.items()],  # in order, which JSON objects lack
            "inputs": [spec_to_dict(spec) for spec in self.inputs],
            "outputs": [spec_to_dict(spec) for spec in self.outputs],
            "result": self.result,
            "dims": [[name, dim.min, dim.opt, dim.max] for name, dim in self.dims.items()],
            **({"writes": [list(pair) for pair in self.writes]} if self.writes else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Signature:
        """The signature that :meth:`to_dict` wrote.

        Raises:
            InvalidFile: the data is not what :meth:`to_dict` writes.
        """
        try:
            signature = cls(
                parameters=tuple(_parameter(item) for item in _list(data["parameters"])),
                arguments={name: node for name, node in _list(data["arguments"])},
                inputs=tuple(spec_from_dict(item) for item in _list(data["inputs"])),
                outputs=tuple(spec_from_dict(item) for item in _list(data["outputs"])),
                result=data["result"],
                dims={name: Dim(low, opt, high, name) for name, low, opt, high in _list(data["dims"])},
                writes=tuple((index, output) for index, output in _list(data.get("writes", []))),
            )
            signature._check_nodes()
            signature.python_signature()  # refuses parameters in an impossible order
            return signature
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise InvalidFile(f"The saved signature is damaged: {type(error).__name__}: {error}.") from None

    def _check_nodes(self) -> None:
        for name, node in self.arguments.items():
            if type(name) is not str:
                raise ValueError(f"an argument is called {name!r}")
            check(node, lambda payload: type(payload) is int)
        order = [payload for node in self.arguments.values() for payload in leaves(node)]
        if order != list(range(len(self.inputs))):
            raise ValueError(f"the arguments hold the inputs {order[:20]}, which are {len(self.inputs)}")
        if not set(self.arguments) <= {parameter.name for parameter in self.parameters}:
            raise ValueError(f"the arguments {', '.join(self.arguments)[:80]} are not those of forward")
        for spec in self.inputs:
            for size in spec.shape:
                if type(size) is str and size not in self.dims:
                    raise ValueError(f"{spec.name} has the size {size!r}, which is no dim")
        for spec in self.outputs:
            for size in spec.shape:
                if type(size) is str and size != "?" and not names(size) <= set(self.dims):
                    raise ValueError(f"{spec.name} has the size {size!r}, whose dims are not known")
        check(self.result, self._is_result)
        if not all(self._is_result({"input": i}) and self._is_result({"output": o}) for i, o in self.writes):
            raise ValueError(f"inputs are written from outputs, {list(self.writes)[:20]}, that are not there")

    def _is_result(self, payload: Any) -> bool:
        if type(payload) is not dict or len(payload) != 1:
            return False
        kind, value = next(iter(payload.items()))
        if kind == "size":
            return isinstance(value, str) and names(value) <= set(self.dims)
        count = {"output": len(self.outputs), "input": len(self.inputs), "constant": 2**31}.get(kind, 0)
        return type(value) is int and 0 <= value < count

    def __repr__(self) -> str:
        dims = "".join(f"\n  {name}: {d.min} to {d.max}, tuned for {d.opt}" for name, d in self.dims.items())
        return f"Signature({', '.join(map(repr, self.inputs))}) -> ({', '.join(map(repr, self.outputs))})" + (
            f" with{dims}" if dims else ""
        )

    # -- calls ---------------------------------------------------------------------------------------------------------

    def plain_names(self) -> tuple[str, ...] | None:
        """The parameters' names, in the order of the inputs, if every captured argument is simply one tensor, and a
        call by position means them: they are the first parameters, none left out between them."""
        names = []
        for index, ((name, node), parameter) in enumerate(zip(self.arguments.items(), self.parameters)):
            if node != {"leaf": index} or name != parameter.name or not parameter.kind.startswith("POSITIONAL"):
                return None
            names.append(name)
        return tuple(names)

    def leading_names(self, count: int) -> tuple[str, ...]:
        """The first ``count`` parameters that may be given by position."""
        positional = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")
        return tuple(p.name for p in self.parameters if p.kind in positional)[:count]

    def python_signature(self) -> inspect.Signature:
        """The original ``forward``'s signature, as :func:`inspect.signature` gave it."""
        return self._python_signature

    @functools.cached_property
    def _python_signature(self) -> inspect.Signature:
        parameters = []
        for p in self.parameters:
            default: Any = inspect.Parameter.empty
            if p.default is not None:
                default = rebuild(p.default, lambda payload: payload)
            elif p.opaque_default:
                default = ...
            parameters.append(inspect.Parameter(p.name, getattr(inspect.Parameter, p.kind), default=default))
        return inspect.Signature(parameters)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The flat input tensors of a call.

        Raises:
            InvalidInput: wrong number or structure of arguments.
            FixedArgumentChanged: another value for an argument that the capture fixed.
        """
        signature = self.python_signature()
        try:
            bound = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise InvalidInput(f"The call does not fit the model's signature forward{signature}: {error}.") from None
        tensors: list[torch.Tensor] = []

        def take(_: str, value: Any) -> Node | None:
            if not isinstance(value, torch.Tensor):
                return None
            tensors.append(value)
            return len(tensors) - 1  # type: ignore[return-value]

        for name, value in bound.items():
            if name not in self.arguments:
                self._check_extra(name, value)
        for name, node in self.arguments.items():
            if name not in bound:
                self._check_omitted(name, node)
                continue
            try:
                given = describe(bound[name], take, name)
            except Unstorable as error:
                raise InvalidInput(f"{error}, which is neither a tensor nor plain data.") from None
            if given != node:
                _explain_difference(name, node, given)
        return tensors

    def _check_omitted(self, name: str, node: Node) -> None:
        """An argument that the call leaves out has its default, which must be what the capture fixed."""
        if any(True for _ in leaves(node)):
            raise InvalidInput(f"The call lacks the argument {name!r}; the module was compiled with it.")
        parameter = next(p for p in self.parameters if p.name == name)
        if parameter.kind.startswith("VAR_") or parameter.default == node:
            return
        default = _show(parameter.default) if parameter.default is not None else "something else"
        raise FixedArgumentChanged(
            f"The argument {name!r} was {_show(node)} when the module was compiled and is part of the engine; this call"
            f" leaves it out, and its default is {default}. Give {name}={_show(node)}, or compile again without it."
        )

    def _check_extra(self, name: str, value: Any) -> None:
        """An argument that the capture did not have must have its default's value."""
        parameter = next(p for p in self.parameters if p.name == name)
        if parameter.kind.startswith("VAR_") and not value:
            return
        try:
            if parameter.default is not None and describe(value, lambda *_: None, name) == parameter.default:
                return
        except Unstorable:
            pass
        if parameter.kind == "VAR_KEYWORD":
            name = next(iter(value))
        raise FixedArgumentChanged(
            f"The argument {name!r} was not given when the module was compiled, so its default is part of the engine."
            f" Compile again with {name!r} among the inputs."
        )

    def sizes(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """The value of each dynamic dim in a call whose inputs have ``shapes``."""
        values: dict[str, int] = {}
        for spec, shape in zip(self.inputs, shapes):
            for size, actual in zip(spec.shape, shape):
                if isinstance(size, str) and size in self.dims:
                    values.setdefault(size, int(actual))
        return values

    def assemble(
        self,
        outputs: Sequence[torch.Tensor],
        inputs: Sequence[torch.Tensor],
        constants: Sequence[torch.Tensor],
    ) -> Any:
        """The model's result, in its own structure, from the engine's outputs. Inputs that the model writes to are
        written to.

        Raises:
            InvalidInput: another input is the same memory as one that is written to; the model would have seen that.
        """
        for index, _ in self.writes:
            others = [i for i, t in enumerate(inputs) if i != index and t.data_ptr() == inputs[index].data_ptr() != 0]
            if others:
                raise InvalidInput(
                    f"The model writes to its input {self.inputs[index].name!r}, and the input"
                    f" {self.inputs[others[0]].name!r} is the same memory; give one of them as a copy (x.clone())."
                )
        for index, output in self.writes:
            inputs[index].copy_(outputs[output])

        def leaf(payload: Mapping[str, Any]) -> Any:
            if "output" in payload:
                return outputs[payload["output"]]
            if "input" in payload:
                return inputs[payload["input"]]
            if "constant" in payload:
                return constants[payload["constant"]]
            return evaluate(payload["size"], self.sizes([t.shape for t in inputs]))

        return rebuild(self.result, leaf)


def describe_parameters(signature: inspect.Signature) -> tuple[Parameter, ...]:
    """``signature`` as plain data; a default that a file cannot hold is marked, not kept."""
    parameters = []
    for p in signature.parameters.values():
        if p.default is inspect.Parameter.empty:
            parameters.append(Parameter(p.name, p.kind.name))
            continue
        try:
            parameters.append(Parameter(p.name, p.kind.name, describe(p.default, lambda *_: None, p.name)))
        except Unstorable:
            parameters.append(Parameter(p.name, p.kind.name, opaque_default=True))
    return tuple(parameters)


def _list(data: Any) -> list[Any]:
    if type(data) is not list:
        raise TypeError(f"{type(data).__name__} in place of a list")
    return data


def _parameter(data: Any) -> Parameter:
    parameter = Parameter(**data)
    kinds = [kind.name for kind in inspect._ParameterKind]
    if type(parameter.name) is not str or not parameter.name.isidentifier() or parameter.kind not in kinds:
        raise ValueError(f"a parameter called {parameter.name!r} of kind {parameter.kind!r}")
    if type(parameter.opaque_default) is not bool:
        raise ValueError(f"opaque_default is {parameter.opaque_default!r}")
    if parameter.default is not None:
        check(parameter.default, lambda payload: False)
    return parameter


def spec_to_dict(spec: TensorSpec) -> dict[str, Any]:
    """``spec`` as plain data."""
    return {**dataclasses.asdict(spec), "shape": list(spec.shape)}


def spec_from_dict(data: Any) -> TensorSpec:
    """What :func:`spec_to_dict` wrote; KeyError, TypeError or ValueError where it is something else."""
    spec = TensorSpec(data["name"], data["dtype"], tuple(_list(data["shape"])))
    if type(spec.name) is not str or type(spec.dtype) is not str:
        raise ValueError("a tensor's name and dtype must be texts")
    if not isinstance(vars(torch).get(spec.dtype), torch.dtype):
        raise ValueError(f"{spec.name} has the dtype {spec.dtype!r}")
    for size in spec.shape:
        if type(size) is str and size != "?":
            names(size)
        elif type(size) is not str and (type(size) is not int or size < 0):
            raise ValueError(f"{spec.name} has the size {size!r}")
    return spec


def _explain_difference(path: str, expected: Node, given: Node) -> None:
    """Raise the error for the first place where two nodes of one argument differ."""
    for kind in ("list", "tuple", "size"):
        if kind in expected and kind in given and len(expected[kind]) == len(given[kind]):
            for index, (a, b) in enumerate(zip(expected[kind], given[kind])):
                if a != b:
                    _explain_difference(f"{path}.{index}", a, b)
    for kind in ("dict", "fields"):
        if kind in expected and kind in given:
            old, new = dict(expected[kind]), dict(given[kind])
            if list(old) != list(new):
                raise InvalidInput(f"{path} has the keys {list(new)}; the module was compiled with {list(old)}.")
            for key in old:
                if old[key] != new[key]:
                    _explain_difference(f"{path}.{key}", old[key], new[key])
    constants = [not any(True for _ in leaves(node)) for node in (expected, given)]
    if all(constants):
        raise FixedArgumentChanged(
            f"The argument {path!r} was {_show(expected)} when the module was compiled and is part of the engine;"
            f" this call has {_show(given)}. Compile again with the other value."
        )
    raise InvalidInput(f"The argument {path!r} is {_show(given)}; the module was compiled with {_show(expected)}.")


def _show(node: Node) -> str:
    if "leaf" in node:
        return "a tensor"
    if "value" in node:
        return repr(node["value"])
    if "float" in node:
        return node["float"]
    if "torch" in node:
        return f"torch.{node['torch']}"
    kind = next(k for k in ("list", "tuple", "size", "dict", "fields") if k in node)
    return f"a {node.get('class', kind).rpartition(':')[2]} of {len(node[kind])}"
