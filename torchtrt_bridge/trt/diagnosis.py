"""Why a build failed, where TensorRT's messages and the network show it, with the remedy."""

from __future__ import annotations

from typing import Any

from .flavor import Flavor
from .log import Messages
from .request import Failure, NoKernel, Request
from .work import work_of

_NO_KERNEL = ("cudnn_impl", "Could not find any implementation")  # Myelin's words, and TensorRT's own


def failed(request: Request, bound: Flavor, messages: Messages, network: Any) -> Failure:
    """The exception for a build of ``network`` that gave no plan."""
    said = " ".join(messages.errors)
    this = f"TensorRT ({bound.name} {bound.version})"
    summary = f"{this} could not build an engine from the model."
    if request.workspace is not None and "workspace" in said:
        summary = f"{summary} workspace={request.workspace} bytes is too little; raise it or leave it out."
    elif "decomposable" in said:
        summary = f"{summary} An attention has no kernel of its own; pass decomposable_attention=True."
    elif "nvinfer_lean" in said:
        summary = f"{summary} version_compatible needs TensorRT's lean runtime: pip install tensorrt_lean."
    elif any(words in said for words in _NO_KERNEL) and (layers := _convolutions(bound, network, "int8")):
        return _without(layers, "int8", f"{this} has no int8 kernel for", tuple(messages.errors)[-3:])
    return Failure(summary, messages=tuple(messages.errors))


def require_right_kernels(bound: Flavor, network: Any) -> None:
    """Raise where TensorRT would build ``network`` and is known to compute something else.

    Raises:
        NoKernel: there are fp8 convolutions, and this TensorRT leaves out their scales.
    """
    if bound.loses_fp8_scales and (layers := _convolutions(bound, network, "fp8")):
        what = f"TensorRT ({bound.name} {bound.version}) computes without the scales of fp8, and so wrongly,"
        raise _without(layers, "fp8", what, ())


def _without(layers: list[str], precision: str, what: str, messages: tuple[str, ...]) -> NoKernel:
    more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
    return NoKernel(
        f"{what} the convolution{'s' * (len(layers) > 1)} {', '.join(layers[:3])}{more}. Keep them in 16 bits, with"
        f" precision={{'default': {precision!r}, nn.Conv2d: 'fp16'}}.",
        messages=messages,
    )


def _convolutions(bound: Flavor, network: Any, precision: str) -> list[str]:
    """The names of the convolutions between whose operands and a kernel of ``precision`` only TensorRT stands."""
    work = work_of(bound.trt, network, {})
    return [item.place for item in work if "convolution" in item.kind and item.typed == precision]
