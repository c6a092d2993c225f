"""An exported program as the module that it was exported from: what :mod:`.archive` read, ready to be compiled."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .archive import Archive, Tree
from .errors import InvalidFile, InvalidOption, nearest
from .onnx_file import Ranges
from .runtime.program import restore
from .signature import Dim


class ProgramModule(nn.Module):
    """An exported program as the module that it was exported from: the same arguments, results and weights.

    Subclasses have a ``forward`` with the signature of one archive: see :meth:`of`.
    """

    archive: Archive

    @staticmethod
    def of(archive: Archive) -> ProgramModule:
        """Raises InvalidFile where the program is damaged, or its arguments are of classes that no file describes."""
        names = archive.names
        arguments = archive.arguments
        positional, keywords = arguments.children if len(arguments.children) == 2 else (Tree("?"), Tree("?"))
        if positional.kind != "tuple" or keywords.kind != "dict" or not all(isinstance(k, str) for k in keywords.keys):
            raise InvalidFile("The exported program's arguments are no positional and keyword arguments.")
        if len(names) != len(positional.children) + len(keywords.keys) or not all(map(_is_parameter, names)):
            names = tuple(f"arg_{index}" for index in range(len(positional.children))) + tuple(keywords.keys)
        names = names[: len(positional.children)] + tuple(keywords.keys)
        if not all(map(_is_parameter, names)) or len(set(names)) != len(names):
            raise InvalidFile(f"The exported program's arguments are called {', '.join(map(str, names))[:200]}.")

        def forward(self: ProgramModule, *args: Any, **kwargs: Any) -> Any:
            return self._run(dict(signature.bind(self, *args, **kwargs).arguments))

        kinds = inspect.Parameter
        parameters = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
        signature = inspect.Signature(parameters)
        forward.__signature__ = signature  # type: ignore[attr-defined]
        cls: Any = type("ExportedProgram", (ProgramModule,), {"forward": forward})
        return cls(archive, names)

    def __init__(self, archive: Archive, names: tuple[str, ...]):
        super().__init__()
        self.training = False
        positional, keywords = archive.arguments.children
        self._trees = dict(zip(names, (*positional.children, *keywords.children)))
        self._results = archive.results
        program = restore(archive.program)
        self._program = program
        self._slots: list[str | None] = []  # the path of each tensor that the graph takes, None for an input
        for spec in program.graph_signature.input_specs:
            self._slots.append(spec.target)
            if spec.target is not None:
                held = program.state_dict if spec.target in program.state_dict else program.constants
                self._hold(spec.target, held[spec.target])

    def _hold(self, path: str, tensor: torch.Tensor) -> None:
        *parents, name = path.split(".")
        module: nn.Module = self
        for parent in parents:
            if parent not in module._modules:
                module._modules[parent] = nn.Module().eval()
            module = getattr(module, parent)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
        else:
            module.register_buffer(name, tensor.detach())

    def _held(self, path: str) -> torch.Tensor:
        *parents, name = path.split(".")
        module: nn.Module = self
        for parent in parents:
            module = getattr(module, parent)
        found = module._parameters.get(name, module._buffers.get(name))
        assert found is not None
        return found

    def _run(self, arguments: Mapping[str, Any]) -> Any:
        flat: list[Any] = []
        for name, tree in self._trees.items():
            _flatten(tree, arguments[name], name, flat)
        given = iter(flat)
        values = [next(given) if path is None else self._held(path) for path in self._slots]
        result = self._program.graph_module.forward(*values)
        leaves = iter(result if isinstance(result, (tuple, list)) else [result])
        return _nest(self._results, leaves)

    def examples(self, ranges: Ranges, dynamic_batch: Any) -> tuple[dict[str, Any], dict[str, dict[int, Dim]] | None]:
        """Arguments made up from the program, and the dims of its dynamic sizes.

        Raises:
            InvalidOption: a range that does not fit the program's, or a size that has no end and was given none.
        """
        nodes = {node.name: node for node in self._program.graph.nodes if node.op == "placeholder"}
        specs = [s for s in self._program.graph_signature.input_specs if s.target is None]
        paths: list[str] = []
        for name, tree in self._trees.items():
            _paths(tree, name, paths)
        unknown = [name for name in ranges if name not in paths]
        if unknown:
            raise InvalidOption(
                f"There is no input {unknown[0]!r}; there is {', '.join(paths)}.{nearest(unknown[0], paths)}"
            )
        symbols: dict[str, Dim] = {}
        dims: dict[str, dict[int, Dim]] = {}
        generator = torch.Generator().manual_seed(0)
        device = next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        values: list[Any] = []
        for path, spec in zip(paths, specs, strict=True):
            value = nodes[spec.arg.name].meta.get("val", getattr(spec.arg, "value", None))
            if not isinstance(value, torch.Tensor):
                values.append(getattr(spec.arg, "value", value))
                continue
            shape = []
            for axis, size in enumerate(value.shape):
                span = _span(path, axis, len(value.shape), ranges, dynamic_batch)
                if isinstance(size, int):
                    if span is not None and path in ranges and set(span) != {size}:
                        raise InvalidOption(f"Axis {axis} of {path!r} is {size} in the exported program, not {span}.")
                    shape.append(size)
                    continue
                symbol = str(size.node.expr)
                if symbol not in symbols:
                    symbols[symbol] = self._dim(symbol, f"{re.sub(r'[^0-9A-Za-z_]', '_', path)}_{axis}", span)
                dims.setdefault(path, {})[axis] = symbols[symbol]
                shape.append(symbols[symbol].opt)
            if value.dtype.is_floating_point:
                values.append(torch.randn(shape, generator=generator).to(device, value.dtype))
            else:
                values.append(torch.randint(0, 2, shape, generator=generator).to(device, value.dtype))
        given = iter(values)
        return {name: _nest(tree, given) for name, tree in self._trees.items()}, dims or None

    def _dim(self, symbol: str, name: str, span: tuple[int, int, int] | None) -> Dim:
        found = {str(key): value for key, value in self._program.range_constraints.items()}.get(symbol)
        lower = 0 if found is None else int(found.lower)
        upper = 2**62 if found is None or found.upper > 2**62 else int(found.upper)
        if upper == 2**62 and lower == 2:  # torch's own assumption about a size that was given no range
            lower = 1
        if span is None:
            if upper >= 2**31 - 1:
                raise InvalidOption(
                    f"The size {name} of the exported program has no upper end; give its range (min, opt and max shapes"
                    " of the input, or dynamic_batch for axis 0)."
                )
            return Dim(lower, upper, upper, name)
        if not lower <= span[0] <= span[2] <= upper:
            raise InvalidOption(f"The size {name} of the exported program may be {lower} to {upper}; {span} was given.")
        return Dim(*span, name)


def _is_parameter(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and name != "self" and len(name) < 200


def _span(path: str, axis: int, rank: int, ranges: Ranges, dynamic_batch: Any) -> tuple[int, int, int] | None:
    if path not in ranges:
        return tuple(dynamic_batch) if axis == 0 and dynamic_batch is not None else None  # type: ignore[return-value]
    shapes = ranges[path]
    if any(len(shape) != rank for shape in shapes):
        raise InvalidOption(f"The input {path!r} has {rank} dimensions; the shapes {shapes} were given.")
    return shapes[0][axis], shapes[1][axis], shapes[2][axis]


def _paths(tree: Tree, path: str, found: list[str]) -> None:
    """The dotted path of every leaf, in order."""
    if tree.kind == "leaf":
        found.append(path)
        return
    for key, child in zip(tree.keys or range(len(tree.children)), tree.children):
        _paths(child, f"{path}.{key}", found)


def _flatten(tree: Tree, value: Any, path: str, flat: list[Any]) -> None:
    if tree.kind == "leaf":
        flat.append(value)
    elif tree.kind == "dict":
        for key, child in zip(tree.keys, tree.children):
            _flatten(child, value[key], f"{path}.{key}", flat)
    elif tree.kind in ("tuple", "list"):
        for index, child in enumerate(tree.children):
            _flatten(child, value[index], f"{path}.{index}", flat)
    else:
        raise InvalidFile(f"The exported program's argument {path!r} is a {tree.kind}, which no file describes.")


def _nest(tree: Tree, leaves: Any) -> Any:
    """The nest of ``leaves``; a class that is not known becomes a tuple of its fields."""
    if tree.kind == "leaf":
        return next(leaves)
    children = [_nest(child, leaves) for child in tree.children]
    if tree.kind == "dict":
        return dict(zip(tree.keys, children))
    return children if tree.kind == "list" else tuple(children)
