"""From a model and example inputs to one graph of tensors, and the signature that surrounds it.

The model is exported behind a wrapper that takes flat tensors and gives flat tensors. So torch.export never sees a
user's argument or result class (none has to be registered with it), every route gets tensor results only, and the
structure around them is described by :mod:`.structure`, once, for the file as well as for the call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from .dynamic import DynamicShapes, resize
from .errors import (
    BridgeError,
    CaptureFailed,
    DeviceMismatch,
    InvalidInput,
    ModelInTraining,
    PythonSideEffect,
    StateMutated,
)
from .export_lock import export_lock
from .exportable import allow_few_boxes, exportable_detection
from .forms import FormCall
from .keeping import Kept, keeping
from .purity import Purity
from .registry import Conversion, Snapshot
from .signature import Signature, TensorSpec, describe_parameters
from .specialization import Guards, explain_specialization
from .stand_ins import notes as stand_in_notes
from .stand_ins import standing_in, without_kernel
from .structure import Node, Unstorable, describe, rebuild


@dataclasses.dataclass(frozen=True, eq=False)
class CapturedModel:
    """What every route starts from.

    ``program`` takes the signature's flat inputs (after its lifted parameters) and gives the signature's flat outputs;
    it is functional, and module names in it carry the prefix ``model.``. ``inputs`` are the flat example tensors, at
    the sizes that the capture ran with. ``constants`` are the results that no input changes. ``eager`` runs the user's
    own module on flat inputs and gives flat outputs; ``model`` is None where a saved program is rebuilt.

    What converters add (see :mod:`.lowering`): ``formed`` is the program in which each call that has a TensorRT, ONNX
    or plugin form is one opaque operator, and ``calls`` says, by the operator's name (``str(node.target)``), which call
    that is; ``program`` has plain operators only. ``routes`` holds another captured model for each route that some
    converters are limited to. ``kept`` are the calls that wait for that stage. ``conversions`` says what became of each
    call, ``notes`` what a report should say of it.
    """

    program: ExportedProgram
    signature: Signature
    inputs: tuple[torch.Tensor, ...]
    constants: tuple[torch.Tensor, ...]
    model: nn.Module | None
    eager: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
    device: torch.device
    formed: ExportedProgram | None = None
    calls: Mapping[str, FormCall] = dataclasses.field(default_factory=dict)
    routes: Mapping[str, CapturedModel] = dataclasses.field(default_factory=dict)
    kept: Kept | None = None
    conversions: tuple[Conversion, ...] = ()
    notes: tuple[str, ...] = ()

    def for_route(self, name: str) -> CapturedModel:
        """The captured model that the route called ``name`` is to take."""
        return self.routes.get(name, self)


def capture(
    model: nn.Module,
    inputs: Any,
    *,
    dynamic_shapes: Any = None,
    dynamic_batch: tuple[int, int, int] | None = None,
    converters: Snapshot | None = None,
) -> CapturedModel:
    """Capture ``model`` called with ``inputs``: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Calls of Python functions and modules that ``converters`` are for stay whole; :func:`.lowering.lower` is to follow.

    The model's parameters, buffers and attributes, the inputs, the random state and the default dtype are as before
    when this returns or raises.

    Raises:
        ModelInTraining, StateMutated, PythonSideEffect, DimSpecialized, CaptureFailed: see their docstrings.
        InvalidInput: the inputs do not fit ``model.forward``, or hold no tensor.
        InvalidOption: the dynamic shapes do not fit the inputs.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"compile needs an nn.Module; it was given a {type(model).__name__}.")
    _require_eval(model)
    _require_ordinary(model)
    call = _Call(model, inputs)
    device = device_of(model, call.tensors)
    dynamic = DynamicShapes.parse(dynamic_shapes, dynamic_batch, call.names, call.tensors, tuple(call.nodes))
    with export_lock, reproducible(device):
        examples = tuple(_ordinary(resize(t, dynamic.example_shape(i))) for i, t in enumerate(call.tensors))
        purity = Purity(model)
        lacking = without_kernel(converters or Snapshot(), device)
        try:
            with standing_in(lacking):
                result, written = _run_eagerly(model, call, examples, purity)
            flat = _FlatModule(model, call, result, written, dynamic)
            with keeping(model, converters or Snapshot()) as kept:
                program = _export(flat, call, examples, dynamic)
        finally:
            purity.restore()
    signature, program = _sign(model, call, result, flat, program, dynamic, examples)

    def eager(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with reproducible(device), standing_in(lacking):
            before = Purity(model)
            try:
                copies = [t.clone() for t in tensors]
                values = [*result.select(call.run(model, copies)), *(copies[i] for i in written)]
            finally:
                before.restore()
        return [values[i] for i in flat.kept]

    return CapturedModel(
        program=program,
        signature=signature,
        inputs=examples,
        constants=(*result.constants, *flat.folded),
        model=model,
        eager=eager,
        device=device,
        kept=kept,
        notes=stand_in_notes(lacking, program, device),
    )


def device_of(model: nn.Module, tensors: Sequence[torch.Tensor] = ()) -> torch.device:
    """The one device of the model's parameters and buffers, or, where it has none, of the inputs.

    Raises:
        DeviceMismatch: there are several, or the inputs are elsewhere.
    """
    places = {t.device for t in (*model.parameters(), *model.buffers())}
    if len(places) > 1:
        raise DeviceMismatch(
            f"The model is spread over {', '.join(sorted(map(str, places)))}; an engine runs on one device."
            " Move the model with model.to(device) first."
        )
    device = places.pop() if places else (tensors[0].device if tensors else torch.device("cpu"))
    for tensor in tensors:
        if tensor.device != device:
            raise DeviceMismatch(f"An input is on {tensor.device} and the model on {device}; move one of them.")
    return device


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """No autograd, no autocast, true fp32, and the caller's random state afterwards."""
    devices = [device] if device.type == "cuda" else []
    kinds = {"cpu", device.type}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))  # whose tensors keep no count of the writes to them
        stack.enter_context(torch.no_grad())
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_true_fp32())
        yield


@contextlib.contextmanager
def _true_fp32() -> Iterator[None]:
    """No TF32 or bf16 inside fp32 products. torch has an old and a new setting, and refuses to read the old one after a
    use of the new; each that can be read is set, and set back."""
    operators: list[Any] = [
        getattr(getattr(torch.backends, backend), operator, None)
        for backend, operator in (("cuda", "matmul"), ("cudnn", "conv"), ("cudnn", "rnn"), ("mkldnn", "matmul"))
    ]
    operators = [operator for operator in operators if hasattr(operator, "fp32_precision")]
    new = [operator.fp32_precision for operator in operators]
    matmul: str | None = None
    convolution: bool | None = None
    with contextlib.suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with contextlib.suppress(RuntimeError):
        convolution = torch.backends.cudnn.allow_tf32

    def apply(old_matmul: str | None, old_convolution: bool | None, precisions: Sequence[str]) -> None:
        if old_matmul is not None:
            torch.set_float32_matmul_precision(old_matmul)
        if old_convolution is not None:
            torch.backends.cudnn.allow_tf32 = old_convolution
        for operator, precision in zip(operators, precisions):
            operator.fp32_precision = precision

    apply(matmul and "highest", convolution and False, ["ieee"] * len(operators))
    try:
        yield
    finally:
        apply(matmul, convolution, new)


def _require_eval(model: nn.Module) -> None:
    # an exported graph is in the mode that it was exported in, whatever it and its parts say, and has no eval()
    exported = [n for n, m in model.named_modules() if isinstance(m, torch.fx.GraphModule) and "eval" in vars(m)]
    for name, module in model.named_modules():
        if module.training and not any(name == part or name.startswith(part and f"{part}.") for part in exported):
            where = f"its submodule {name!r} ({type(module).__name__})" if name else "it"
            raise ModelInTraining(
                f"The model is in training mode: {where} has training=True, so dropout and batch statistics would"
                " become part of the engine. Call model.eval() before compiling."
            )


def _require_ordinary(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_inference() and parameter.requires_grad:
            raise CaptureFailed(
                f"The parameter {name!r} was made inside torch.inference_mode(); torch.export cannot take it. Compile"
                " copy.deepcopy(model), made outside of it, whose parameters are ordinary ones."
            )


def _ordinary(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, or a copy where it was made inside torch.inference_mode(), which later steps cannot take."""
    return tensor.clone() if tensor.is_inference() else tensor


class _Call:
    """One call of the model, as flat tensors and the structure around them."""

    def __init__(self, model: nn.Module, inputs: Any):
        args, kwargs = _arguments(inputs)
        self.signature = inspect.signature(model.forward)
        try:
            self.bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidInput(
                f"The inputs do not fit {type(model).__name__}.forward{self.signature}: {error}. Give a tuple of"
                " positional arguments or a dict of keyword arguments."
            ) from None
        self.tensors: list[torch.Tensor] = []
        self.names: list[str] = []

        def leaf(path: str, value: Any) -> Node | None:
            if not isinstance(value, torch.Tensor):
                return None
            if value.layout != torch.strided or value.is_quantized:
                raise InvalidInput(f"The input {path!r} has layout {value.layout}; only dense tensors can go in.")
            self.tensors.append(value.detach())
            self.names.append(path)
            return len(self.tensors) - 1  # type: ignore[return-value]

        try:
            self.nodes = {name: describe(value, leaf, name) for name, value in self.bound.arguments.items()}
        except Unstorable as error:
            raise InvalidInput(
                f"The input {error}. Inputs may be tensors and plain data (None, bool, int, float, str) in tuples,"
                " lists, dicts, dataclasses and registered pytrees."
            ) from None
        if not self.tensors:
            raise InvalidInput("None of the inputs is a tensor; an engine needs at least one.")

    def run(self, model: nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        """The model's result for other tensors in the same structure."""
        arguments = {name: rebuild(node, lambda index: tensors[index]) for name, node in self.nodes.items()}
        bound = inspect.BoundArguments(self.signature, arguments)  # type: ignore[arg-type]
        return model(*bound.args, **bound.kwargs)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), {str(name): value for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    raise InvalidInput(
        f"inputs is a {type(inputs).__name__}; it must be a tensor, a tuple of positional arguments or a dict of"
        " keyword arguments, as the model would be called with."
    )


class _Result:
    """The structure of the model's result, and which of its tensors are inputs or parameters themselves."""

    def __init__(self, model: nn.Module, value: Any, inputs: Sequence[torch.Tensor]):
        self._inputs = {id(t): i for i, t in enumerate(inputs)}
        self._state = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self.constants: list[torch.Tensor] = []
        self.tensors: list[torch.Tensor] = []
        self.names: list[str] = []
        self._numbers: dict[int, int] = {}
        self.node = self._describe(value)

    def _describe(self, value: Any) -> Node:
        def leaf(path: str, item: Any) -> Node | None:
            if not isinstance(item, torch.Tensor):
                return None
            if id(item) in self._inputs:
                return {"input": self._inputs[id(item)]}
            if id(item) in self._state:
                self.constants.append(item.detach().cpu().clone())
                return {"constant": len(self.constants) - 1}
            if id(item) not in self._numbers:
                self._numbers[id(item)] = len(self.tensors)
                self.tensors.append(item)
                self.names.append(path or "output")
            return {"output": self._numbers[id(item)]}

        try:
            return describe(value, leaf)
        except Unstorable as error:
            raise CaptureFailed(
                f"The model's result holds something that no engine can return: result.{error}. Results may be tensors"
                " and plain data in tuples, lists, dicts, dataclasses and registered pytrees."
                " (A cache object can often be switched off, as with use_cache=False.)"
            ) from None

    def select(self, value: Any) -> list[torch.Tensor]:
        """The tensors of another result of the same structure, in this one's order."""
        found: dict[int, torch.Tensor] = {}

        def walk(node: Node, other: Any) -> None:
            payload = node.get("leaf")
            if payload is not None:
                if "output" in payload:
                    found[payload["output"]] = other
                return
            for kind in ("list", "tuple", "size"):
                for child, item in zip(node.get(kind, ()), other if kind in node else ()):
                    walk(child, item)
            for key, child in node.get("dict", ()):
                walk(child, other[key])
            if "fields" in node:
                if node["style"] == "pytree":
                    flatten = torch.utils._pytree.SUPPORTED_NODES[type(other)].flatten_fn
                    for (_, child), item in zip(node["fields"], flatten(other)[0]):
                        walk(child, item)
                else:
                    for key, child in node["fields"]:
                        walk(child, other[key] if node["style"] == "mapping" else getattr(other, key))

        walk(self.node, value)
        return [found[i] for i in range(len(self.tensors))]


def _run_eagerly(
    model: nn.Module, call: _Call, examples: Sequence[torch.Tensor], purity: Purity
) -> tuple[_Result, tuple[int, ...]]:
    """Call the model as it is: a faulty call, a write to its state or a Python side effect shows here, by name.

    Returns the result, and the indices of the inputs that the model writes to.
    """
    inputs = [t.clone() for t in examples]
    versions = [t._version for t in inputs]
    try:
        value = call.run(model, inputs)
    except Exception as error:
        raise InvalidInput(
            f"The model itself fails when called with these inputs: {type(error).__name__}: {error}"
        ) from error
    written = tuple(i for i, tensor in enumerate(inputs) if tensor._version != versions[i])
    for i in written:
        if inputs[i].shape != examples[i].shape or inputs[i].stride() != examples[i].clone().stride():
            raise StateMutated(
                f"The model changes the shape of its input {call.names[i]!r} in place, which an engine cannot do."
                " Let it work on a copy: x = x.clone(), or the operation without the underscore."
            )
    changed = purity.written()
    if changed:
        raise StateMutated(
            f"The model writes to its own {changed} when called; an engine's weights are fixed, so the change would be"
            " lost. Return the new value as a result and keep it outside."
        )
    if purity.attributes_changed():  # once may be a cache that fills itself; twice is a counter or a log
        purity.look_again()
        call.run(model, [t.clone() for t in examples])
        attribute = purity.attributes_changed()
        if attribute:
            raise PythonSideEffect(
                f"Calling the model changes the Python attribute {attribute}; torch.export drops such changes without"
                " a word, so code that reads it would see an old value. Return it as a result, or remove it."
            )
    return _Result(model, value, inputs), written


class _FlatModule(nn.Module):
    """The user's model with flat tensors in and out, for torch.export. An input that the model writes to is a copy
    here, and given back after the results.

    ``traced.node`` is the result's node with the numbers that are made from shapes, seen while tracing. (An attribute
    of the module itself would be put back by torch.export.)
    """

    def __init__(
        self, model: nn.Module, call: _Call, result: _Result, written: tuple[int, ...], dynamic: DynamicShapes
    ):
        super().__init__()
        self.eval()
        self.model = model
        self._call, self._result, self._dynamic = call, result, dynamic
        self.written = written
        self.guards = Guards(dynamic)
        self.traced = types.SimpleNamespace(node=result.node)
        self.kept: list[int] = list(range(len(result.tensors) + len(written)))
        self.folded: list[torch.Tensor] = []

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.guards.watch(tensors)
        tensors = tuple(tensor.clone() if i in self.written else tensor for i, tensor in enumerate(tensors))
        value = self._call.run(self.model, tensors)
        self.traced.node = describe_traced(value, self._result.node)
        return (*self._result.select(value), *(tensors[i] for i in self.written))


def describe_traced(value: Any, node: Node) -> Node:
    """``node`` with every number of ``value`` that tracing found to depend on shapes as a ``size`` leaf."""
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        expression = str(value.node.expr)
        if not isinstance(value, torch.SymInt):
            raise CaptureFailed(
                f"The model returns {expression}, a {type(value).__name__[3:].lower()} made from an input's shape; only"
                " whole numbers can be. Compute it outside the model."
            )
        return {"leaf": {"size": expression}}
    for kind in ("list", "tuple", "size"):
        if kind in node:
            return {kind: [describe_traced(item, child) for item, child in zip(value, node[kind])]}
    if "dict" in node:
        return {**node, "dict": [[key, describe_traced(value[key], child)] for key, child in node["dict"]]}
    if "fields" in node and node["style"] != "pytree":
        mapping = node["style"] == "mapping"
        return {
            **node,
            "fields": [
                [key, describe_traced(value[key] if mapping else getattr(value, key), child)]
                for key, child in node["fields"]
            ],
        }
    return node


def _export(
    flat: _FlatModule, call: _Call, examples: tuple[torch.Tensor, ...], dynamic: DynamicShapes
) -> ExportedProgram:
    if not flat.kept:
        raise CaptureFailed("Every result of the model is an input, a parameter or a constant: nothing to compute.")
    try:
        # which kernel eager's attention would take is not the graph's matter; one on GPUs pads masks to multiples of
        # eight, and so ties a dynamic length to them
        with warnings.catch_warnings(), exportable_detection(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")
            program = torch.export.export(
                flat, examples, dynamic_shapes={"tensors": dynamic.for_export()}, strict=False
            )
            # functional form; the default table would split attention and linear, and fails on some models
            program = program.run_decompositions({})
        allow_few_boxes(program)
    except BridgeError:
        raise
    except Exception as error:
        specialized = explain_specialization(error, flat.guards, dynamic)
        if specialized is not None:
            raise specialized from error
        summary = re.split(r"\n\n\n|\nFor more information|\n\nThe error above", str(error).strip())[0]
        raise CaptureFailed(
            f"torch.export cannot capture the model: {type(error).__name__}: {summary}{flat.guards.last_user_line()}"
        ) from error
    finally:
        flat.guards.stop()
    _refuse_mutation(program, call.names)
    return program


def _refuse_mutation(program: ExportedProgram, names: Sequence[str]) -> None:
    """A mutation shows in the signature only after decomposition, also one that left the example's values alone."""
    signature = program.graph_signature
    for target in signature.buffers_to_mutate.values():
        raise StateMutated(
            f"The model writes to its buffer {target.removeprefix('model.')!r} when called; an engine's weights are"
            " fixed. Return the new value as a result and keep it outside."
        )
    for target in signature.user_inputs_to_mutate.values():
        name = names[list(signature.user_inputs).index(target)]
        raise StateMutated(f"The model writes to its input {name!r}; let it work on a copy (x = x.clone()).")


def _sign(
    model: nn.Module,
    call: _Call,
    result: _Result,
    flat: _FlatModule,
    program: ExportedProgram,
    dynamic: DynamicShapes,
    examples: tuple[torch.Tensor, ...],
) -> tuple[Signature, ExportedProgram]:
    """The signature of the finished program; results that no input changes leave the program and become constants."""
    symbols = dynamic.symbols(program)
    names = [*result.names, *(call.names[i] for i in flat.written)]
    folded = {i for i in _constant_outputs(program) if i < len(result.tensors)}
    flat.kept = [i for i in range(len(names)) if i not in folded]
    if not flat.kept:
        raise CaptureFailed("No result of the model depends on its inputs: nothing to compute.")
    number = {old: new for new, old in enumerate(flat.kept)}
    base = len(result.constants)
    where = {old: base + i for i, old in enumerate(sorted(folded))}
    flat.folded = [result.tensors[old].detach().cpu().clone() for old in sorted(folded)]

    def renumber(payload: Mapping[str, Any]) -> Node:
        if "size" in payload:
            size = dynamic.rename(payload["size"], symbols)
            if size == "?":
                raise CaptureFailed(
                    f"The model returns the number {payload['size']}, which depends on the values in its inputs. Return"
                    " it as a tensor, or compute it outside the model."
                )
            return {"leaf": {"size": size}}
        if "output" not in payload:
            return {"leaf": dict(payload)}
        old = payload["output"]
        return {"leaf": {"output": number[old]} if old in number else {"constant": where[old]}}

    if folded:
        program = _drop_outputs(program, folded)
    outputs = []
    for index, spec in zip(flat.kept, program.graph_signature.output_specs):
        value = next(n for n in program.graph.nodes if n.name == spec.arg.name).meta["val"]
        shape = tuple(dynamic.rename(size, symbols) for size in value.shape)
        outputs.append(TensorSpec(names[index], str(value.dtype).removeprefix("torch."), shape))
    inputs = tuple(
        TensorSpec(name, str(tensor.dtype).removeprefix("torch."), dynamic.spec_shape(i, tensor.shape))
        for i, (name, tensor) in enumerate(zip(call.names, examples))
    )
    signature = Signature(
        parameters=describe_parameters(call.signature),
        arguments=call.nodes,
        inputs=inputs,
        outputs=tuple(outputs),
        result=_map_leaves(flat.traced.node, renumber),
        dims=dynamic.dims,
        writes=tuple((i, number[len(result.tensors) + position]) for position, i in enumerate(flat.written)),
    )
    return signature, program


def _map_leaves(node: Node, change: Callable[[Mapping[str, Any]], Node]) -> Node:
    if "leaf" in node:
        return change(node["leaf"])
    for kind in ("list", "tuple", "size"):
        if kind in node:
            return {kind: [_map_leaves(child, change) for child in node[kind]]}
    for kind in ("dict", "fields"):
        if kind in node:
            return {**node, kind: [[key, _map_leaves(child, change)] for key, child in node[kind]]}
    return node


def _constant_outputs(program: ExportedProgram) -> set[int]:
    """Indices of the outputs that no user input and no random operator reaches."""
    inputs = set(program.graph_signature.user_inputs)
    varies: dict[str, bool] = {}
    for node in program.graph.nodes:
        random = node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        varies[node.name] = node.name in inputs or random or any(varies[n.name] for n in node.all_input_nodes)
    return {i for i, spec in enumerate(program.graph_signature.output_specs) if not varies[spec.arg.name]}


def _drop_outputs(program: ExportedProgram, dropped: set[int]) -> ExportedProgram:
    node = next(iter(reversed(program.graph.nodes)))
    node.args = (tuple(value for i, value in enumerate(node.args[0]) if i not in dropped),)
    specs = program.graph_signature.output_specs
    program.graph_signature.output_specs = [spec for i, spec in enumerate(specs) if i not in dropped]
    call = program.module_call_graph[0].signature  # which unflattens what the program returns
    assert call is not None
    call.outputs = [output for i, output in enumerate(call.outputs) if i not in dropped]
    call.out_spec = torch.utils._pytree.tree_structure(node.args[0])
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program
