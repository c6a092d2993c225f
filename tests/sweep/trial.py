"""One case tried: compiled, run, compared with eager; what came of it as plain data.

The outcomes:

- ``right``: the results have eager's structure, dtypes, shapes and values, on the example and on other inputs.
- ``refused``: compiling, or the call, raised one of the package's own errors.
- ``wrong``, ``raw error``: anything else that the process survived. (``crash`` and ``timeout`` are the runner's.)
- ``not counted``: eager does not run it, it writes to its weights (training), the result is the input itself or
  complex, or torch.export does not capture it (with these dynamic dims).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import cases
import torch
from torch import nn
from torch.utils import _pytree as pytree

import torchtrt_bridge as ttb
from torchtrt_bridge.dynamic import resize
from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.reproducible import reproducible


@dataclasses.dataclass(frozen=True)
class Trial:
    """What came of a case; ``seconds`` are wall time, ``detail`` the first line of an error or the difference found."""

    outcome: str
    route: str = ""
    runtime: str = ""
    error: str = ""
    detail: str = ""
    seconds: float = 0.0


def attempt(case_id: cases.CaseId, where: str, backend: str = "auto", hybrid: bool = False) -> Trial:
    """Try a case. ``where``: ``"cuda"``, ``"cpu"``, or ``"build"`` (a plan built here, not run)."""
    began = time.monotonic()
    try:
        case = cases.make(case_id)
    except cases.NoSuchCase as reason:
        return Trial("no such case", detail=str(reason))
    _, precision, dynamic = case_id.settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Asked on the CPU: an index out of range is an exception there, and the end of the process on a GPU.
        reason = _not_counted(case.module, case.inputs)
        dims, axes = None, {}
        if reason is None and dynamic:
            fixed = cases.SORTED.get(case_id.operator)
            dims, axes, reason = _dynamic_shapes(case.module, case.inputs, fixed)
        if reason is not None:
            return Trial("not counted", detail=reason)
        device = torch.device("cuda" if where == "cuda" else "cpu")
        module = copy.deepcopy(case.module).to(device)
        inputs, others = ([t.to(device) for t in tensors] for tensors in (case.inputs, case.others))
        if device.type == "cuda" and (reason := _not_counted_there(case, module, device)):
            return Trial("not counted", detail=f"on the GPU, {reason}")
        options: dict[str, Any] = {
            "dynamic_shapes": dims,
            "backend": backend,
            "hybrid": "allow_torch" if hybrid else False,  # an operator by itself may leave nothing for TensorRT
        }
        if where == "cuda":  # this process is one that may end; attentions have ended some
            options["build"] = ttb.BuildOptions(isolate="attention" in case_id.operator)
        trial = _compile_and_compare(module, inputs, others, precision, axes, where, options)
        if trial.error in ("CaptureFailed", "InvalidInput", "DimSpecialized"):
            dim = next(iter(next(iter(dims.values())).values())) if dims else None
            reason = _export_refuses(module, inputs, (axes, dim.min, dim.max) if dim else None)
            if reason is not None:
                return Trial("not counted", detail=f"torch.export: {reason}")
        if device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                return Trial("crash", trial.route, trial.runtime, detail=f"CUDA is unusable after it: {error}"[:200])
    return dataclasses.replace(trial, seconds=round(time.monotonic() - began, 2))


def _compile_and_compare(
    module: nn.Module,
    inputs: Sequence[torch.Tensor],
    others: Sequence[torch.Tensor],
    precision: str,
    axes: dict[int, int],
    where: str,
    options: Mapping[str, Any],
) -> Trial:
    try:
        if where == "build":
            fast = ttb.build(module, tuple(inputs), precision, **options)
            return Trial("right", fast.report.backend, fast.report.runtime, detail="built, not run")
        fast = ttb.compile(module, tuple(inputs), precision, device=where, **options)
        route, runtime = fast.report.backend, fast.report.runtime
        for tensors in (inputs, others, _other_sizes(others, axes)):
            if tensors is None:
                continue
            with reproducible(tensors[0].device):
                expected = module(*[t.clone() for t in tensors])
                actual = fast(*[t.clone() for t in tensors])
                difference = _difference(actual, expected, _wide(module, tensors), precision)
            if difference:
                sizes = ", ".join(str(list(t.shape)) for t in tensors)
                return Trial("wrong", route, runtime, detail=f"{difference} (inputs {sizes})")
        return Trial("right", route, runtime)
    except BridgeError as error:
        return Trial("refused", error=type(error).__name__, detail=_summary(error))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{_summary(error)} ({last.filename.rsplit('/', 1)[-1]}:{last.lineno})"
        return Trial("raw error", error=type(error).__name__, detail=detail)


def _summary(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    chosen = [line for line in lines if line.startswith("MISS")][:1] or lines[1:2]
    return " | ".join([*lines[:1], *chosen])[:400]


def _not_counted(module: nn.Module, inputs: Sequence[torch.Tensor]) -> str | None:
    """Why a case says nothing about a compiler, whatever the shapes."""
    try:
        with torch.no_grad():
            given = [t.clone() for t in inputs]
            before = {name: buffer.clone() for name, buffer in module.named_buffers()}
            result = module(*given)
    except Exception as error:
        return f"eager: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    if any(not torch.equal(before[name], buffer) for name, buffer in module.named_buffers()):
        return "it writes to its weights, as in training"
    tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        return "no result is a tensor"
    if any(t.is_complex() for t in tensors):
        return "a result is complex"
    if all(any(t is g for g in given) for t in tensors):
        return "the result is the input itself"
    if not any(t.numel() for t in tensors):
        return "every result is empty"
    return None


def _not_counted_there(case: cases.Case, module: nn.Module, device: torch.device) -> str | None:
    """Why a case says nothing about a compiler on a GPU: eager does not run it there, or its whole numbers are others
    than on the CPU (which of several equal values a selection takes follows no rule)."""
    for tensors in (case.inputs, case.others):
        reason = _not_counted(module, [t.to(device) for t in tensors])
        if reason is not None:
            return reason
        with torch.no_grad():
            results = (run(*[t.clone().to(d) for t in tensors]) for run, d in ((module, device), (case.module, "cpu")))
            here, there = (pytree.tree_leaves(result) for result in results)
        for a, b in zip(here, there):
            whole = isinstance(a, torch.Tensor) and a.dtype == torch.int64
            if whole and all(not t.is_floating_point() for t in here) and not torch.equal(a.cpu(), b):
                return "eager's whole numbers are others than on the CPU"
    return None


def _dynamic_shapes(
    module: nn.Module, inputs: Sequence[torch.Tensor], fixed: int | None
) -> tuple[Any, dict[int, int], str | None]:
    """The first choice of dynamic axes that torch.export takes, as ``dynamic_shapes``; else why there is none."""
    refusal = "no axis of two or more"
    for axes in cases.dynamic_axes(inputs, fixed):
        size = inputs[next(iter(axes))].shape[axes[next(iter(axes))]]
        refusal = _eager_refuses(module, inputs, axes, 2 * size) or ""
        smallest = size if size < 3 or refusal or _eager_refuses(module, inputs, axes, 2) else 2
        refusal = refusal or _export_refuses(module, inputs, (axes, smallest, 2 * size)) or ""
        if refusal:
            continue
        dim = ttb.Dim(smallest, size, 2 * size)
        names = [f"tensors.{i}" for i in range(len(inputs))]
        return {names[i]: {axis: dim} for i, axis in axes.items()}, axes, None
    return None, {}, refusal


def _resized(tensors: Sequence[torch.Tensor], axes: dict[int, int], size: int) -> list[torch.Tensor]:
    """``tensors`` at another size of the dynamic axes, made as verification does: indices stay valid."""
    found = list(tensors)
    for i, axis in axes.items():
        found[i] = resize(found[i], [size if a == axis else n for a, n in enumerate(found[i].shape)])
    return found


def _other_sizes(tensors: Sequence[torch.Tensor], axes: dict[int, int]) -> list[torch.Tensor] | None:
    if not axes:
        return None
    number, axis = next(iter(axes.items()))
    return _resized(tensors, axes, tensors[number].shape[axis] + 1)


def _eager_refuses(module: nn.Module, inputs: Sequence[torch.Tensor], axes: dict[int, int], size: int) -> str | None:
    try:
        with torch.no_grad():
            module(*_resized(inputs, axes, size))
    except Exception as error:
        return f"eager at size {size}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    return None


def _export_refuses(
    module: nn.Module, inputs: Sequence[torch.Tensor], dynamic: tuple[dict[int, int], int, int] | None
) -> str | None:
    """torch.export's own refusal of the module, asked without the package; None where it takes it."""
    shapes = None
    if dynamic is not None:
        axes, smallest, largest = dynamic
        dim = torch.export.Dim("n", min=smallest, max=largest)
        shapes = {"tensors": tuple({axes[i]: dim} if i in axes else None for i in range(len(inputs)))}
    try:
        with torch.no_grad():
            torch.export.export(module, tuple(inputs), dynamic_shapes=shapes, strict=False).run_decompositions({})
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        return f"{type(error).__name__}: {text.splitlines()[0]}"[:200]
    return None


def _wide(module: nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
    """Eager's result in float64; None where an operator has no float64."""
    try:
        return copy.deepcopy(module).double()(*[t.double() if t.is_floating_point() else t.clone() for t in tensors])
    except Exception:
        return None


def _difference(actual: Any, expected: Any, wide: Any, precision: str) -> str | None:
    """What differs, or None. Structure, dtypes and shapes are to be the same, and where a value is not finite."""
    found, structure = pytree.tree_flatten(actual)
    wanted, tree = pytree.tree_flatten(expected)
    exact = pytree.tree_leaves(wide)
    if structure != tree:
        return f"structure {structure} instead of {tree}"
    for number, (a, b) in enumerate(zip(found, wanted)):
        if not isinstance(b, torch.Tensor):
            if a != b:
                return f"result {number} is {a!r} instead of {b!r}"
            continue
        if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
            kinds = [f"{t.dtype}{list(t.shape)} on {t.device}" for t in (a, b)]
            return f"result {number} is {kinds[0]} instead of {kinds[1]}"
        reference = exact[number] if len(exact) == len(wanted) and isinstance(exact[number], torch.Tensor) else None
        text = _values_differ(a, b, reference, precision)
        if text:
            return f"result {number}: {text}"
    return None


_RTOL = {"fp32": 2e-4, "fp16": 2e-2}


def _values_differ(a: torch.Tensor, b: torch.Tensor, exact: torch.Tensor | None, precision: str) -> str | None:
    """Floats: each within a share of its own size and of the tensor's root mean square, or as near to the float64
    result as four times eager's own distance. Other dtypes: equal; in fp16 up to 5 % of elements may be on the other
    side of a comparison or a rounding."""
    if not b.numel():
        return None
    if not b.is_floating_point():
        share = (a != b).double().mean().item()
        return f"{share:.1%} of elements differ" if share > (0.05 if precision == "fp16" else 0.0) else None
    rtol = _RTOL[precision] if b.dtype in (torch.float32, torch.float64) else max(_RTOL[precision], 2e-2)
    finite = b.isfinite()
    same = (a == b) | (a.isnan() & b.isnan())
    if not bool((finite | same).all()):
        return f"{int((~finite & ~same).sum())} elements differ where eager is not finite"
    a64, b64 = a.double(), b.double()
    rms = b64[finite].square().mean().sqrt() if bool(finite.any()) else torch.tensor(0.0, device=b.device)
    error = (a64 - b64).abs()
    bad = finite & ~(error <= rtol * (b64.abs() + rms) + 1e-12)
    if exact is not None and exact.shape == b.shape:
        own = (b64 - exact.double()).abs()[finite]
        slack = 4 * own.max().item() if own.numel() and math.isfinite(own.max().item()) else 0.0
        bad &= ~((a64 - exact.double()).abs() <= slack)
    share = bad.double().mean().item()
    if not share or (precision == "fp16" and share <= 0.05 and bool(a.isfinite()[bad].all())):
        return None
    most = error[bad].max().item()
    return f"{share:.1%} of elements are off, by up to {most:.3g}, where eager's root mean square is {rms.item():.3g}"
