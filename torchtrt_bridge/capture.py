"""From a model and example inputs to one graph of tensors, and the signature that surrounds it.

The model is exported behind a wrapper that takes flat tensors and gives flat tensors. So torch.export never sees a
user's argument or result class (none has to be registered with it), every route gets tensor results only, and the
structure around them is described by :mod:`.structure`, once, for the file as well as for the call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from .dynamic import DynamicShapes, resize
from .errors import (
    CaptureFailed,
    DeviceMismatch,
    InvalidInput,
    ModelInTraining,
    PythonSideEffect,
    StateMutated,
)
from .export_lock import export_lock
from .flat_call import FlatCall, FlatResult
from .flat_program import FlatModule, export, sign
from .forms import FormCall
from .keeping import Kept, keeping
from .purity import Purity
from .registry import Conversion, Snapshot
from .reproducible import reproducible
from .signature import Signature
from .stand_ins import notes as stand_in_notes
from .stand_ins import standing_in, without_kernel


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
    call = FlatCall(model, inputs)
    device = device_of(model, call.tensors)
    dynamic = DynamicShapes.parse(dynamic_shapes, dynamic_batch, call.names, call.tensors, tuple(call.nodes))
    with export_lock, reproducible(device):
        examples = tuple(_ordinary(resize(t, dynamic.example_shape(i))) for i, t in enumerate(call.tensors))
        purity = Purity(model)
        lacking = without_kernel(converters or Snapshot(), device)
        try:
            with standing_in(lacking):
                result, written = _run_eagerly(model, call, examples, purity)
            flat = FlatModule(model, call, result, written, dynamic)
            with keeping(model, converters or Snapshot()) as kept:
                program = export(flat, call, examples, dynamic)
        finally:
            purity.restore()
    signature, program = sign(model, call, result, flat, program, dynamic, examples)

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


def _run_eagerly(
    model: nn.Module, call: FlatCall, examples: Sequence[torch.Tensor], purity: Purity
) -> tuple[FlatResult, tuple[int, ...]]:
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
    return FlatResult(model, value, inputs), written
