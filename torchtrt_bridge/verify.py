"""The compiled module against the eager model, on the same inputs, at every end of every dynamic range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .capture import CapturedModel
from .dynamic import resize, shapes_for
from .errors import VerificationFailed
from .near_ties import align
from .precision import Precision
from .quantization.graph import is_quantized


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a compiled result may be from the eager one.

    Args:
        relative_l2: most ``||compiled - eager|| / ||eager||`` per result.
        max_error: most ``max|compiled - eager| / max|eager|`` per result.
        unequal: largest share of elements that may differ in an integer or bool result (a near tie in an argmax).
    """

    relative_l2: float
    max_error: float
    unequal: float


DEFAULTS = {
    "fp32": Tolerance(4e-4, 2e-3, 0.001),
    "fp16": Tolerance(1e-2, 5e-2, 0.01),
    "bf16": Tolerance(6e-2, 2e-1, 0.05),
    "int8": Tolerance(2e-1, 6e-1, 0.2),
    "fp8": Tolerance(2e-1, 6e-1, 0.2),
}
"""fp32: another order of summation (TensorRT-RTX's convolutions: 2e-4 over ResNet-50), below TF32's 6e-4. fp16 and
bf16: some ten roundings of 2**-11 and 2**-8 on the way through a deep network, as eager's own ``.half()`` and
``.bfloat16()`` show them. int8 and fp8: what eight bits and a good calibration lose; a wrong scale loses all."""

TF32 = Tolerance(5e-3, 2e-2, 0.01)
"""fp32 with ``BuildOptions(tf32=True)``: 10 bits of mantissa in matrix products."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One result at one set of sizes. ``relative_l2``, ``max_error`` are NaN for integers, ``unequal`` for floats."""

    at: str
    result: str
    relative_l2: float
    max_error: float
    unequal: float
    new_nonfinite: int
    passed: bool

    def __str__(self) -> str:
        size = f"{self.result} at {self.at}"
        if not math.isnan(self.unequal):
            return f"{size}: {self.unequal:.2%} of elements differ"
        bad = f", {self.new_nonfinite} NaN or Inf where eager is finite" if self.new_nonfinite else ""
        return f"{size}: relative L2 {self.relative_l2:.2e}, max error {self.max_error:.2e}{bad}"


Runner = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


def verify(
    captured: CapturedModel, run: Runner, precision: Precision, tolerance: Tolerance | None = None
) -> tuple[Row, ...]:
    """Compare ``run`` (flat inputs to flat outputs, on any device) with the eager model.

    Raises:
        VerificationFailed: a result is off by more than ``tolerance`` (the precision's default), with the table.
    """
    limit = tolerance or DEFAULTS[narrowest(captured, precision)]
    rows: list[Row] = []
    for at, tensors in cases(captured):
        reference = captured.eager(tensors)
        actual = run(tensors)
        found = _rows(captured, at, reference, actual, limit)
        if not all(row.passed for row in found):
            aligned = align(captured.signature.outputs, reference, actual, limit.max_error)
            again = _rows(captured, f"{at}, near ties in eager's order", reference, aligned, limit)
            found = again if all(row.passed for row in again) else found
        rows += found
    if not all(row.passed for row in rows):
        table = "\n".join(f"  {'ok  ' if row.passed else 'MISS'} {row}" for row in rows)
        raise VerificationFailed(
            f"The compiled module's results differ from the eager model's in {precision}:\n{table}\n"
            f"allowed: relative L2 {limit.relative_l2:.0e}, max error {limit.max_error:.0e}, unequal integers"
            f" {limit.unequal:.1%}. {_advice(precision, rows)}",
            rows=[dataclasses.asdict(row) for row in rows],
        )
    return tuple(rows)


def _rows(
    captured: CapturedModel,
    at: str,
    reference: Sequence[torch.Tensor],
    actual: Sequence[torch.Tensor],
    limit: Tolerance,
) -> list[Row]:
    outputs = captured.signature.outputs
    return [compare(at, s.name, e, a, limit) for s, e, a in zip(outputs, reference, actual, strict=True)]


def narrowest(captured: CapturedModel, precision: Precision) -> str:
    """The precision, or, for a model that is in 16 bits itself, its own: eager's results are no nearer to the truth. A
    graph with quantized tensors is int8's case whatever the rest computes in: a value between two numbers may go to
    either, and weights in few bits are no longer eager's."""
    written = captured.program is None  # by hand, in TensorRT's layers
    if not written and not precision.quantized and is_quantized(captured.program):
        return "int8"
    dtypes = {spec.dtype for spec in captured.signature.outputs}
    own = "bf16" if "bfloat16" in dtypes else "fp16" if "float16" in dtypes else "fp32"
    return own if precision.narrowest == "fp32" else precision.narrowest


def _advice(precision: Precision, rows: Sequence[Row]) -> str:
    accept = "pass verify=torchtrt_bridge.Tolerance(...) if this error is acceptable."
    if precision.quantized:
        return (
            "What lies beyond the ranges of the calibration data is clipped: give example inputs that are like that"
            f" data. Or give more of it, a higher precision to some layers, or {accept}"
        )
    if precision.narrowest != "fp32":
        return f"Use a higher precision, or {accept}"
    if all(row.passed or row.relative_l2 < TF32.relative_l2 for row in rows):
        return (
            "Errors of this size are TF32's: TensorRT for RTX 1.4 rounds fp32 products to it whatever is asked. Use a"
            f" newer one, accept it with build=BuildOptions(tf32=True), or {accept}"
        )
    return f"{accept[:1].upper()}{accept[1:]}"


def cases(captured: CapturedModel) -> list[tuple[str, list[torch.Tensor]]]:
    """The example inputs, and the same repeated or cropped to the smallest and the largest sizes."""
    found = {"the example": list(captured.inputs)}
    dims = captured.signature.dims
    for which in ("min", "max") if dims else ():
        sizes = {name: getattr(dim, which) for name, dim in dims.items()}
        shapes = shapes_for(captured.signature.inputs, sizes)
        if shapes != [tuple(t.shape) for t in captured.inputs]:
            at = ", ".join(f"{name}={size}" for name, size in sizes.items())
            found[at] = [resize(t, shape) for t, shape in zip(captured.inputs, shapes)]
    return list(found.items())


def compare(at: str, name: str, expected: torch.Tensor, actual: Any, limit: Tolerance) -> Row:
    """One row: ``actual`` against ``expected``. A differing shape or dtype never passes."""
    nan = math.nan
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        found = f"{name} ({actual.dtype}{list(actual.shape)} instead of {expected.dtype}{list(expected.shape)})"
        return Row(at, found, nan, nan, 1.0, 0, False)
    if not expected.numel():
        return Row(at, name, 0.0, 0.0, nan, 0, True)
    actual = actual.to(expected.device)
    if not expected.dtype.is_floating_point and not expected.dtype.is_complex:
        unequal = (actual != expected).double().mean().item()
        return Row(at, name, nan, nan, unequal, 0, unequal <= limit.unequal)
    wide = torch.complex128 if expected.dtype.is_complex else torch.float64
    finite = expected.isfinite()
    new_nonfinite = int((finite & ~actual.isfinite()).sum())
    other_nonfinite = int((~finite & (actual != expected) & ~(actual.isnan() & expected.isnan())).sum())
    a, b = actual[finite].to(wide), expected[finite].to(wide)
    if not b.numel():
        return Row(at, name, 0.0, 0.0, nan, other_nonfinite, other_nonfinite == 0)
    error = (a - b).abs()
    scale, peak = b.norm().item(), b.abs().max().item()
    relative = error.norm().item() / scale if scale else error.norm().item()
    largest = error.max().item() / peak if peak else error.max().item()
    passed = not new_nonfinite and not other_nonfinite and relative <= limit.relative_l2 and largest <= limit.max_error
    return Row(at, name, relative, largest, nan, new_nonfinite + other_nonfinite, passed)
