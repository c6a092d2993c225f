"""Exported programs as a file holds them, and as PyTorch runs them.

This is the one file that uses torch's serializer of exported programs (``torch._export.serde``, which is private).
Only its JSON is used: tensors stay tensors, example inputs and the tree of arguments and results are left out (the
:class:`~torchtrt_bridge.signature.Signature` has that), and :mod:`.program_check` stands before its deserializer.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx.node import map_aggregate
from torch.utils import _pytree

from ..backends.base import StoredProgram
from ..errors import BackendUnavailable, ConversionFailed, InvalidFile, InvalidInput, StateMutated
from ..export_lock import export_lock
from .program_check import MissingOperators, Refused, checked
from .tracing import outside_dynamo


def store(program: ExportedProgram) -> StoredProgram:
    """``program`` as JSON and plain tensors; the tensors share the program's storage.

    Kept are the graph, the parameters, buffers and constants that it uses, the ranges of its sizes and the module path
    of every node. Left out are example inputs, stack traces, guards, and the tree of arguments and results: the
    restored program takes and gives flat tuples.

    Raises:
        ConversionFailed: the program holds what no file can: an object that is no tensor, a subclass of
            :class:`torch.Tensor`, an operator that does more than compute, a write to a buffer or input.
    """
    from torch._export.serde import schema, serialize

    wanted = inspect.signature(serialize.serialize).parameters
    tensors = ("serialize_state_dict", "serialize_constants", "serialize_example_inputs")
    left_out: dict[str, Any] = {name: False for name in tensors if name in wanted}
    with export_lock:
        try:
            text = serialize.serialize(program, **left_out).exported_program
            document = checked(json.loads(text), schema.ExportedProgram)
        except (Refused, MissingOperators) as error:
            raise ConversionFailed(f"The program cannot be saved: {error}.") from error
        except Exception as error:
            raise ConversionFailed(f"The program cannot be saved: {_first_line(error)}.") from error
    graph = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    state, constants = _lifted(document)
    return StoredProgram(
        graph=graph,
        state={name: _plain_tensor(program.state_dict[name], name) for name, _ in state},
        constants={name: _plain_tensor(_constant(program, name), name) for name, _ in constants},
    )


def restore(stored: StoredProgram) -> ExportedProgram:
    """The program that :func:`store` took apart; it shares the stored tensors. Nothing is unpickled, and no text is
    evaluated that was not checked first.

    Raises:
        InvalidFile: the stored program is damaged, made to do harm, or from a torch whose form this one cannot read.
        BackendUnavailable: it calls operators that no package imported here registers.
    """
    from torch._export.serde import schema, serialize

    from ..quantization import graph  # noqa: F401  (registers the operators for quantized tensors)

    try:
        document = checked(json.loads(bytes(stored.graph), parse_constant=_no_constant), schema.ExportedProgram)
    except MissingOperators as error:
        raise BackendUnavailable(
            f"The saved program calls operators that are not registered here: {error}. Import the package that"
            " registers them (torchvision, for its own), then load again."
        ) from None
    except (ValueError, RecursionError) as error:  # Refused, and what json raises
        raise InvalidFile(f"The saved program is damaged or was altered: {_first_line(error)}.") from None
    written, author = document["schema_version"]["major"], document.get("torch_version", "?")[:40]
    if written != schema.SCHEMA_VERSION[0]:
        raise InvalidFile(
            f"The saved program was written by torch {author} (schema {written}); torch {torch.__version__} reads"
            f" schema {schema.SCHEMA_VERSION[0]}. Load it with that torch, or compile again."
        )
    state, constants = _tensors_for(document, stored)
    signature = document["graph_module"]["signature"]
    inputs = sum("user_input" in spec or "constant_input" in spec for spec in signature["input_specs"])
    document["graph_module"]["module_call_graph"] = [_flat_call(inputs, len(signature["output_specs"]))]
    artifact = serialize.SerializedArtifact(json.dumps(document).encode(), state, constants, b"")  # type: ignore[arg-type]
    with export_lock:
        try:
            program = serialize.deserialize(artifact)
        except Exception as error:
            raise InvalidFile(
                f"torch {torch.__version__} cannot rebuild the saved program (written by torch {author}):"
                f" {_first_line(error)}."
            ) from error
    _check_shapes(program)
    return program


class FlatProgram:
    """A program as a function of its flat input tensors: see :func:`run_callable`."""

    def __init__(self, graph: torch.fx.GraphModule, bound: Sequence[Any], slots: Sequence[int]):
        self.graph, self._bound, self._slots = graph, tuple(bound), tuple(slots)

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """The flat outputs, numbers and None among them, for the flat inputs.

        Raises:
            InvalidInput: not as many inputs as the program takes.
        """
        with torch.no_grad(), _without_autocast():
            result = outside_dynamo(lambda all_: self.graph.forward(*all_), self.arguments(inputs))
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def arguments(self, inputs: Sequence[Any]) -> list[Any]:
        """What :attr:`graph` takes for these flat inputs: its parameters, buffers and constants among them.

        Raises:
            InvalidInput: not as many inputs as the program takes.
        """
        if len(inputs) != len(self._slots):
            raise InvalidInput(f"The program takes {len(self._slots)} inputs; this call gives {len(inputs)}.")
        values = list(self._bound)
        for slot, value in zip(self._slots, inputs):
            values[slot] = value
        return values

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> FlatProgram:
        """The same program with ``function(tensor)`` in place of every parameter, buffer and constant."""
        bound = [function(v) if isinstance(v, torch.Tensor) else v for v in self._bound]
        return FlatProgram(self.graph, bound, self._slots)

    def to(self, device: torch.device | str) -> FlatProgram:
        """The same program on ``device``: its tensors, and the devices that its graph names (``zeros(device=...)``)."""
        target = torch.device(device)
        moved = self.map(lambda tensor: tensor.to(target))
        return FlatProgram(_on_device(self.graph, target), moved._bound, self._slots)


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """The caller's autocast does not change dtypes that are written into the graph."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def run_callable(program: ExportedProgram) -> FlatProgram:
    """``program`` as a fast function from a list of flat input tensors to a list of flat outputs.

    Parameters, buffers and constants are bound once, without gradients. Calls do not change the function, so any number
    of threads may call it. Shapes are not checked.

    Raises:
        StateMutated: the program writes to a buffer, a parameter or an input.
    """
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise StateMutated(f"The program writes to {spec.target or spec.arg.name!r}; only eager PyTorch does that.")
    bound: list[Any] = []
    slots = []
    for index, spec in enumerate(program.graph_signature.input_specs):
        value = None
        if spec.kind is not InputKind.USER_INPUT:
            assert spec.target is not None
            held = program.state_dict if spec.target in program.state_dict else program.constants
            value = held[spec.target]
        elif isinstance(spec.arg, ConstantArgument):
            value = spec.arg.value
        else:
            slots.append(index)
        bound.append(value.detach() if isinstance(value, torch.Tensor) else value)
    return FlatProgram(program.graph_module, bound, slots)


def _lifted(document: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """``(name, placeholder)`` of the parameters and persistent buffers that a graph takes, and of its other tensors."""
    state: dict[str, str] = {}
    constants: dict[str, str] = {}
    for spec in document["graph_module"]["signature"]["input_specs"]:
        kind, value = next(iter(spec.items()))
        if kind == "parameter":
            state[value["parameter_name"]] = value["arg"]["name"]
        elif kind == "buffer":
            (state if value["persistent"] else constants)[value["buffer_name"]] = value["arg"]["name"]
        elif kind == "tensor_constant":
            constants[value["tensor_constant_name"]] = value["arg"]["name"]
    return list(state.items()), list(constants.items())


def _constant(program: ExportedProgram, name: str) -> Any:
    return program.constants[name] if name in program.constants else program.state_dict[name]


def _plain_tensor(value: Any, name: str) -> torch.Tensor:
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ConversionFailed(f"The program cannot be saved: {name} is a {kind}, not a plain tensor.")
    return value.detach()


def _tensors_for(document: Mapping[str, Any], stored: StoredProgram) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state dict and the constants as the graph wants them: its parameters as ``torch.nn.Parameter``."""
    state, constants = _lifted(document)
    for names, tensors in ((state, stored.state), (constants, stored.constants)):
        if {name for name, _ in names} != set(tensors):
            differing = sorted({name for name, _ in names} ^ set(tensors))
            raise InvalidFile(f"The saved program and its tensors do not fit: {', '.join(differing[:5])}.")
    metas = document["graph_module"]["graph"]["tensor_values"]
    parameters = {
        spec["parameter"]["parameter_name"]
        for spec in document["graph_module"]["signature"]["input_specs"]
        if "parameter" in spec
    }
    result: dict[str, Any] = {}
    for name, placeholder in state:
        tensor = stored.state[name]
        if name in parameters:
            differentiable = tensor.is_floating_point() or tensor.is_complex()
            wanted = bool(metas.get(placeholder, {}).get("requires_grad"))
            tensor = torch.nn.Parameter(tensor, requires_grad=wanted and differentiable)
        result[name] = tensor
    return result, dict(stored.constants)


def _flat_call(inputs: int, outputs: int) -> dict[str, Any]:
    """The entry of ``module_call_graph`` for a call with flat arguments that gives a flat tuple."""
    arguments = _pytree.tree_structure(((0,) * inputs, {}))
    results = _pytree.tree_structure((0,) * outputs)
    call = {"in_spec": _pytree.treespec_dumps(arguments), "out_spec": _pytree.treespec_dumps(results)}
    return {"fqn": "", "signature": {"inputs": [], "outputs": [], **call, "forward_arg_names": None}}


def _check_shapes(program: ExportedProgram) -> None:
    """The tensors must be those that the graph was made for."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            continue
        assert spec.target is not None
        held = program.state_dict if spec.target in program.state_dict else program.constants
        tensor, meta = held[spec.target], placeholders[spec.arg.name].meta.get("val")
        if not isinstance(meta, torch.Tensor) or (meta.dtype, meta.shape) != (tensor.dtype, tensor.shape):
            raise InvalidFile(f"The saved program and its tensor {spec.target} do not fit: {tuple(tensor.shape)}.")


def _on_device(graph: torch.fx.GraphModule, device: torch.device) -> torch.fx.GraphModule:
    """``graph`` itself where it names no other device, else a copy that names ``device``. What a program that was
    captured on a GPU puts on the CPU stays there."""
    values = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    stays = {"cpu"} if any(isinstance(v, torch.Tensor) and v.device.type == "cuda" for v in values) else set()

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) and value.type not in stays else value

    children = {n: _on_device(m, device) for n, m in graph.named_children() if isinstance(m, torch.fx.GraphModule)}
    changed = any(children[name] is not getattr(graph, name) for name in children)
    if not changed and not any(moved(v) != v for node in graph.graph.nodes for v in _devices(node)):
        return graph
    nodes = torch.fx.Graph()
    nodes.output(nodes.graph_copy(graph.graph, {}))
    for node in nodes.nodes:
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), moved)
    return torch.fx.GraphModule({**dict(graph.named_children()), **children}, nodes)


def _devices(node: torch.fx.Node) -> Iterable[torch.device]:
    return [v for v in _pytree.tree_leaves((node.args, node.kwargs)) if isinstance(v, torch.device)]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0][:300] if lines else type(error).__name__).rstrip(".")
