"""One trace of a model by torch2trt's converters: a network comes out, and nothing stays behind.

While it traces, torch2trt replaces functions of torch and methods of ``torch.Tensor``, for the whole process. Only this
thread's calls reach its converters; another thread's go to torch as ever. Every replaced name is put back as it was,
also those that were inherited and not there, whether the trace succeeds or fails.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import BridgeError, ConversionFailed
from ..trt.request import Failure
from .torch2trt_converters import CONVERTERS
from .torch2trt_forms import Forms
from .torch2trt_library import Library
from .torch2trt_network import Network
from .torch2trt_tensors import Tensors

_DTYPES = {
    torch.bool: "bool",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}
_WARNINGS_ONLY = "unimplemented_converters"  # prints a line for every function of torch that it does not know


def trace(
    library: Library,
    network: Network,
    model: nn.Module,
    run: Callable[[nn.Module, Sequence[torch.Tensor]], list[torch.Tensor]],
    inputs: Sequence[tuple[str, torch.Tensor, tuple[int, ...]]],
    forms: Forms,
) -> list[tuple[Any, torch.Tensor]]:
    """Run ``model`` under torch2trt's converters.

    Args:
        model: it is not changed; a copy of its modules, with the same tensors, is traced.
        run: calls the model with flat tensors, gives its flat results.
        inputs: name, example and shape (-1 where dynamic) of each.
        forms: converters with TensorRT forms, which go before torch2trt's.

    Returns:
        For every result, TensorRT's tensor and the example's torch tensor.

    Raises:
        UnsupportedLayer: there is no converter for an operator; it says which, and the module.
        ConversionFailed: a converter failed.
        HandwrittenFailed: a form failed.
    """
    module = _twin(model)
    context = _context(library, network, module)
    examples = [example.clone() for _, example, _ in inputs]
    dynamic = any(-1 in shape for _, _, shape in inputs)
    tensors = Tensors(lambda: _place(context), lambda t: t.name in network.constants, network.reshape, dynamic)
    for (name, _, shape), example in zip(inputs, examples):
        given = network.real.add_input(name=name, dtype=trt_dtype(network.trt, example.dtype), shape=shape)
        tensors.begin(example, given)
    try:
        with _patched(library, context, tensors), torch.no_grad(), tensors:
            with forms.serving(module, tensors, lambda: _running(context)):
                results = run(module, examples)
        return [(tensors.result(result), result) for result in results]
    except (BridgeError, Failure):
        raise
    except Exception as error:
        if isinstance(error, AttributeError) and str(error) == "_trt" and tensors.missed is not None:
            raise tensors.missed from error
        raise ConversionFailed(
            f"torch2trt's converters fail in {tensors.failed_in or 'the model'}: {type(error).__name__}:"
            f" {str(error).strip() or 'no message'}"
        ) from error


def trt_dtype(trt: Any, dtype: torch.dtype) -> Any:
    """Raises TypeError for a dtype that TensorRT does not have."""
    if dtype not in _DTYPES:
        raise TypeError(f"{dtype} is not supported by tensorrt")
    return getattr(trt, _DTYPES[dtype])


def _twin(model: nn.Module) -> nn.Module:
    """The model's modules anew, around the same parameters and buffers: hooks on them are on nobody else's."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        return copy.deepcopy(model, dict(shared))
    except Exception as error:
        raise ConversionFailed(
            f"The torch2trt route traces a copy of the model's modules, and {type(model).__name__} cannot be copied"
            f" (copy.deepcopy): {type(error).__name__}: {error}"
        ) from error


def _context(library: Library, network: Network, module: nn.Module) -> Any:
    """torch2trt's tracing context. What it is told of the builder's settings is what a GPU without flags has."""
    converters = {
        key: converter
        for key, converter in library.module.CONVERTERS.items()
        if not converter["converter"].__module__.endswith(_WARNINGS_ONLY)
    }
    converters.update(_users_own(library))
    config = types.SimpleNamespace(set_device_type=lambda *_: None, can_run_on_DLA=lambda _: False)
    options = {
        "module": module,
        "fp16_mode": False,
        "int8_mode": False,
        "strict_type_constraints": False,
        "device_types": {},
        "default_device_type": network.trt.DeviceType.GPU,
        "gpu_fallback": True,
        "use_onnx": False,
    }
    return library.module.ConversionContext(
        network, converters=converters, torch2trt_kwargs=options, builder_config=config, logger=None
    )


def _users_own(library: Library) -> dict[Any, Any]:
    """Converters from :mod:`.torch2trt_converters`, as the library makes its own; its registry stays as it is."""
    registry = library.module.CONVERTERS
    before = dict(registry)
    try:
        for own in CONVERTERS.values():
            library.module.tensorrt_converter(own.method, is_real=own.is_real, imports=list(own.imports))(own.convert)
        return {own.method: registry[own.method] for own in CONVERTERS.values() if own.method in registry}
    finally:
        registry.clear()
        registry.update(before)


def _running(context: Any) -> nn.Module | None:
    """The module that runs; None between the model's own."""
    return context.module_stack[-1] if context.module_stack else None


def _place(context: Any) -> str:
    """The module that runs, as the user would find it."""
    if not context.module_stack:
        return "the model"
    module = context.module_stack[-1]
    name = context.get_module_name(module)
    return f"module {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"


@contextlib.contextmanager
def _patched(library: Library, context: Any, tensors: Tensors) -> Iterator[None]:
    """torch2trt's patches in place, for this thread's calls; afterwards, everything as it was."""
    owner = threading.get_ident()
    attach = library.module.attach_converter

    def attach_here(ctx: Any, method: Any, converter: Any, name: str) -> Any:
        traced = tensors.during(attach(ctx, method, converter, name))

        def call(*args: Any, **kwargs: Any) -> Any:
            ours = threading.get_ident() == owner and not tensors.in_operator
            return traced(*args, **kwargs) if ours else method(*args, **kwargs)

        return call

    with contextlib.ExitStack() as undo:
        for place, attribute in _replaced(context):
            undo.callback(_restore, place, attribute, place.__dict__.get(attribute, _ABSENT))
        for module in library.modules.values():  # dtypes that it does not know
            for attribute, ours in _dtype_functions(context).items():
                if attribute in module.__dict__:
                    undo.callback(setattr, module, attribute, module.__dict__[attribute])
                    setattr(module, attribute, ours)
        undo.callback(setattr, library.module, "attach_converter", attach)
        library.module.attach_converter = attach_here  # type: ignore[attr-defined]
        for attribute in _READERS:
            setattr(torch.Tensor, attribute, tensors.reading(getattr(torch.Tensor, attribute)))
        torch.Tensor._trt = tensors.property()  # type: ignore[attr-defined]
        with context:
            try:
                yield
            except Exception:
                tensors.failed_in = _place(context)
                raise


def _dtype_functions(context: Any) -> Mapping[str, Callable[[Any], Any]]:
    trt = context.network._network.trt


    def from_trt(dtype: Any) -> torch.dtype:
        for known, name in _DTYPES.items():
            if getattr(trt, name) == dtype:
                return known
        raise TypeError(f"{dtype} is not supported by torch")

    return {"torch_dtype_to_trt": functools.partial(trt_dtype, trt), "torch_dtype_from_trt": from_trt}


_ABSENT = object()
_READERS = ("numpy", "tolist", "__array__")


def _replaced(context: Any) -> Iterator[tuple[Any, str]]:
    """Every object and attribute that torch2trt's context, or this module, replaces."""
    yield from ((torch.Tensor, name) for name in ("_trt", "size", "__getattribute__", *_READERS))
    for hook in context.hooks:
        place = hook.converter["module"]
        *path, name = hook.converter["qual_name"].split(".")
        for part in path:
            place = getattr(place, part)
        yield place, name


def _restore(place: Any, attribute: str, value: Any) -> None:
    if value is not _ABSENT:
        setattr(place, attribute, value)
    elif attribute in place.__dict__:
        delattr(place, attribute)
