"""Whether eight bits are a gain on this GPU: one matrix product in int8 or fp8 against the same in fp16, measured.

Kernels for eight bits are not faster everywhere (TensorRT for RTX 1.6 on Hopper has int8 products at half of fp16's
speed), and a model that is compiled in int8 alone would not show it. The product is built and measured once for a GPU
and a TensorRT; the answer is kept in the cache.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .cache import Cache
from .measuring import measure
from .trt.build import build
from .trt.request import Plan, Request
from .trt.targets import installed

_log = logging.getLogger("torchtrt_bridge")
_SIDE = 2048  # of the square matrices
_BUDGET_S = 1.0


def no_gain(precision: str, device: torch.device, tf32: bool) -> str | None:
    """A sentence for the report where a matrix product in ``precision`` (``"int8"``, ``"fp8"``) is not faster than in
    fp16 on the GPU ``device``; None where it is, or where that could not be measured.

    Args:
        tf32: whether engines of this process compute fp32 in TF32 (TensorRT for RTX decides that once).
    """
    ratio = _ratio(precision, device.index or 0, tf32)
    if ratio is None or ratio < 1:
        return None
    name = torch.cuda.get_device_name(device)
    return (
        f"{precision} is no gain here: a matrix product of {_SIDE}x{_SIDE}x{_SIDE} takes {ratio:.2f} times as long as"
        f" in fp16 on this {name}, measured. precision='fastest' measures the model itself"
    )


@functools.cache
def _ratio(precision: str, index: int, tf32: bool) -> float | None:
    """The time of the product in ``precision`` by that in fp16."""
    device, bound, cache = torch.device("cuda", index), installed(), Cache()
    key = f"eight bits {precision} {_SIDE} {torch.cuda.get_device_name(device)} {bound.name} {bound.version}"
    if (kept := cache.get(key)) is not None:
        return float(bytes(kept))
    try:
        with torch.cuda.device(device):
            x = torch.randn(_SIDE, _SIDE, device=device).half()
            calls = {name: _call(product(name), device, x, tf32) for name in ("fp16", precision)}
            times = {timing.name: timing.median for timing in measure(calls, device, budget=_BUDGET_S)}
    except Exception as error:  # what the report says beside must not cost the compilation
        _log.info("%s against fp16 could not be measured: %s", precision, error)
        return None
    ratio = times[precision] / times["fp16"]
    cache.put(key, repr(ratio).encode())
    return ratio


def product(precision: str) -> Plan:
    """The plan of one square matrix product of the input ``x``, fp16, and constant weights; its result is ``y``."""
    return build(Request(fill=functools.partial(_fill, precision)), isolate=False)


def _fill(precision: str, trt: Any, network: Any) -> Any:
    weights = np.random.default_rng(0).standard_normal((_SIDE, _SIDE)).astype(np.float16)
    scale = np.array(0.03, np.float16)
    x = network.add_input("x", trt.float16, (_SIDE, _SIDE))
    w = network.add_constant(weights.shape, trt.Weights(weights)).get_output(0)
    if precision != "fp16":
        kind = trt.int8 if precision == "int8" else trt.DataType.FP8
        by = network.add_constant((), trt.Weights(scale)).get_output(0)
        x, w = (_through(network, tensor, by, kind, trt.float16) for tensor in (x, w))
    layer = network.add_matrix_multiply(x, trt.MatrixOperation.NONE, w, trt.MatrixOperation.NONE)
    layer.name = "product"
    layer.get_output(0).name = "y"
    network.mark_output(layer.get_output(0))
    return weights, scale  # which must live until the plan is there


def _through(network: Any, tensor: Any, scale: Any, kind: Any, back: Any) -> Any:
    """``tensor`` quantized and dequantized again."""
    quantized = network.add_quantize(tensor, scale, kind).get_output(0)
    return network.add_dequantize(quantized, scale, back).get_output(0)


def _call(plan: Plan, device: torch.device, x: torch.Tensor, tf32: bool) -> Callable[[], object]:
    from .trt.engine import Engine
    from .trt.execution import Execution

    def fits(tensors: Sequence[Any]) -> None:
        return None

    engine = Engine(torch.frombuffer(plan.data, dtype=torch.uint8), device, tf32=tf32)
    run = Execution(engine, ("x",), ("y",), fits, torch.empty(0, dtype=torch.uint8), max_contexts=1)
    return lambda: run([x])
