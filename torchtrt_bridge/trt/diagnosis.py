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
    elif any(words in said for words in _NO_KERNEL) and (layers := _int8_convolutions(bound, network)):
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        return NoKernel(
            f"{this} has no int8 kernel for the convolution{'s' * (len(layers) > 1)} {', '.join(layers[:3])}{more}."
            " Keep them in 16 bits, with precision={'default': 'int8', nn.Conv2d: 'fp16'}.",
            messages=tuple(messages.errors)[-3:],
        )
    return Failure(summary, messages=tuple(messages.errors))


def _int8_convolutions(bound: Flavor, network: Any) -> list[str]:
    """The names of the convolutions between whose operands and an int8 kernel only TensorRT stands."""
    work = work_of(bound.trt, network, {})
    return [item.place for item in work if "convolution" in item.kind and item.typed == "int8"]
