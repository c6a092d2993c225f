"""A converter's TensorRT layers on the Torch-TensorRT route: its call is an operator there, and the registry of
Torch-TensorRT has a converter of it for as long as one network is made.

Like :mod:`.torch_tensorrt_network`, only the process that holds Torch-TensorRT imports this file.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch_tensorrt.dynamo.conversion import dynamo_tensorrt_converter
from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_ATEN_CONVERTERS

from ..crossing import from_plain
from ..errors import UnsupportedLayer
from ..forms import NAMESPACE, FormCall
from ..layer_forms import layer_form, target_of
from ..trt.conversion import ConversionContext
from ..trt.flavor import Flavor
from ..trt.handwritten import Expected, add_layers, tensors_of


@contextlib.contextmanager
def defined(calls: Sequence[Mapping[str, Any]], flavor: Flavor) -> Iterator[None]:
    """Within, the operators of ``calls`` (see :func:`.torch_tensorrt.calls_of`) are there, and converters for them.

    Raises:
        UnsupportedLayer: a converter cannot be had in this process.
    """
    contexts: list[ConversionContext] = []  # which keep weights alive until the plan is there
    with contextlib.ExitStack() as undo:
        library = undo.enter_context(torch.library._scoped_library(NAMESPACE, "FRAGMENT"))
        for each in calls:
            try:
                call = from_plain(each["call"])
            except Exception as error:  # the author's module, imported here, raises anything
                raise UnsupportedLayer(
                    f"The converter of {each['call']['converter'][0]} is not there in Torch-TensorRT's process:"
                    f" {type(error).__name__}: {error}"
                ) from error
            overload = _define(library, each["schema"], call)
            expected = [Expected(dtype, tuple(shape)) for dtype, shape in each["results"]]
            converter = functools.partial(_convert, flavor, contexts, call, expected)
            dynamo_tensorrt_converter(overload, supports_dynamic_shapes=True)(converter)
            undo.callback(operator.delitem, DYNAMO_ATEN_CONVERTERS, overload)
        yield


def _define(library: torch.library.Library, schema: str, call: FormCall) -> Any:
    """The operator, which computes what the call does where Torch-TensorRT looks for shapes or folds constants."""
    single = schema.endswith("-> Tensor")

    def body(*values: Any) -> Any:
        found = call.spelled(values)
        return found[0] if single else found

    name = schema.partition("(")[0]
    library.define(schema)
    library.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", body, lib=library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _convert(
    flavor: Flavor,
    contexts: list[ConversionContext],
    call: FormCall,
    expected: Sequence[Expected],
    theirs: Any,
    target: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    name: str,
) -> Any:
    """What Torch-TensorRT calls. ``theirs`` is its own context, with the network."""
    if not contexts or contexts[-1].network is not theirs.net:
        contexts.append(ConversionContext(flavor, theirs.net))
    ctx = contexts[-1]
    assert call.registration is not None
    form = layer_form(call.registration, flavor)
    assert form is not None
    kinds = [argument.type.kind() for argument in target._schema.arguments]
    given, named = call.bind([_tensor(ctx, value, kind) for value, kind in zip(args, kinds)])
    with ctx.scope(call.place, target_of(call)):
        results = add_layers(ctx, form, given, named, functools.partial(tensors_of, ctx, expected))
    return results[0] if target._schema.returns[0].type.kind() == "TensorType" else results


def _tensor(ctx: ConversionContext, value: Any, kind: str) -> Any:
    """An argument as a tensor of the network's. Parameters come as torch's; a size comes as a number, or as a tensor of
    any integer dtype, with one element or without dimensions."""
    tensor = value if isinstance(value, ctx.trt.ITensor) else ctx.constant(value)
    return tensor if kind == "TensorType" else ctx.reshape(ctx.cast(tensor, torch.int64), [1])
