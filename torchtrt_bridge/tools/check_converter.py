"""ttb.check_converter(): each form of a converter, on each route, against eager. What its author calls in a test."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..errors import InvalidInput, InvalidOption, RunsOnCPU, nearest
from ..progress import Stages
from ..registry import Converter, Registration
from ..selection import BACKENDS
from ..verify import Tolerance
from .converter_check import ConverterCheck, Trial
from .form_trials import Bench, Shapes
from .one_call import OneCall, describe

PRECISIONS = ("fp32", "fp16", "bf16")


def check_converter(
    checked: Converter | Registration,
    samples: Any,
    *,
    forms: Sequence[str] | None = None,
    routes: Sequence[str] | None = None,
    precisions: Sequence[str] = PRECISIONS,
    dynamic_batch: bool | tuple[int, int, int] = True,
    dynamic_shapes: Any = None,
    device: torch.device | str | None = None,
    tolerance: Tolerance | None = None,
    plans: bool = True,
    show: bool = True,
) -> ConverterCheck:
    """Compile a call of what ``checked`` converts, by each form on each route, and compare with eager.

    On a GPU every module runs there. Without one, what can runs on the CPU, and TensorRT, where it can build without a
    GPU, makes a plan that is not run; the result tells the two apart. A form that fails is a row of the result, with
    the reason; nothing is raised for it. What is registered stays as it is.

    Args:
        checked: what ``@converter(...)`` made, or an item of ``converter.list()``.
        samples: a list of samples, or a function that yields them. A sample is a tensor, a tuple of the target's
            arguments or a dict of them by name (an ``nn.Module`` class: a tuple that begins with an instance). Tensors
            are the inputs, an ``nn.Parameter`` is a weight, which the converter may read while the network is made.
        forms: of these; None: all that it has.
        routes: by these; None: all that it is for.
        precisions: in these, where a sample's tensors are float32; others are taken in their own dtype.
        dynamic_batch: besides fixed shapes, axis 0 of all inputs with the first one's batch size is dynamic: True: from
            1 to twice the sample's, or ``(min, opt, max)``; False: fixed shapes only.
        dynamic_shapes: other dims instead, ``{argument: {axis: Dim}}``.
        device: where to run; None: the GPU, if there is one.
        tolerance: None: that of each precision.
        plans: have TensorRT make plans where there is no GPU to run them; what takes most of the time there.
        show: print the result.

    Returns:
        A :class:`ConverterCheck`: printable, a table in notebooks; ``.passed``, ``.raise_if_failed()`` for a test.

    Raises:
        InvalidInput: a sample does not fit.
        InvalidOption: there is no such form, route or precision, or the converter does not have it.

    Example:
        >>> import torch, torchtrt_bridge as ttb
        >>> def double(x): return x + x
        >>> @ttb.converter(double, register=False)
        ... def of_double(x): return 2 * x
        >>> check = ttb.check_converter(of_double, [torch.randn(2, 3)], routes=["onnx"], plans=False, show=False)
        >>> check.passed
        True
    """
    from ..asked import parse_device

    registration = _registration(checked)
    forms = _chosen("forms", forms, registration.forms, f"the converter of {registration.target} has")
    served = [route.name for route in BACKENDS if registration.serves(route.name)]
    routes = _chosen("routes", routes, served, f"the converter of {registration.target} is for")
    precisions = _chosen("precisions", precisions, PRECISIONS, "there is")
    where = parse_device(device) or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trials: list[Trial] = []
    with Stages() as stages, warnings.catch_warnings():
        warnings.simplefilter("ignore", RunsOnCPU)
        for sample in _samples(samples):
            plain = OneCall(registration.target, sample, where)
            low = [precision for precision in precisions if precision != "fp32" and plain.is_float32]
            models = [(plain, ["fp32"])] if "fp32" in precisions or not low else []
            models += [(OneCall(registration.target, sample, where, linear=True), low)] if low else []
            for shapes in _shapes(plain, dynamic_batch, dynamic_shapes):
                for form, (model, names) in itertools.product(forms, models):
                    bench = Bench(registration, form, model, describe(sample), shapes, where, tolerance, plans, stages)
                    trials += bench.trials(routes, names)
    origin = registration.origin
    name = f"the converter of {registration.target} ({origin.module}.{origin.qualname})"
    found = ConverterCheck(name, tuple(forms), tuple(trials))
    if show:
        print(found)
    return found


def _registration(checked: Any) -> Registration:
    if isinstance(checked, Registration):
        return checked
    if isinstance(checked, Converter):
        return checked.registration
    raise InvalidInput(
        f"check_converter() needs what @torchtrt_bridge.converter(target) made, and was given {checked!r}."
    )


def _chosen(option: str, given: Sequence[str] | None, known: Sequence[str], there_is: str) -> tuple[str, ...]:
    names = tuple(known if given is None else (given,) if isinstance(given, str) else given)
    for name in names:
        if name not in known:
            raise InvalidOption(
                f"check_converter({option}={name!r}): {there_is} {', '.join(known)}.{nearest(str(name), known)}"
            )
    return names


def _samples(samples: Any) -> Iterator[Any]:
    found = samples() if callable(samples) else samples
    if isinstance(found, (torch.Tensor, Mapping)) or not isinstance(found, Iterable):
        raise InvalidInput("check_converter(): give the samples in a list, or a function that yields them.")
    given = list(found)
    if not given:
        raise InvalidInput("check_converter(): there is no sample, so there is nothing to check.")
    return iter(given)


def _shapes(model: OneCall, dynamic_batch: Any, dynamic_shapes: Any) -> list[Shapes]:
    """Fixed shapes, and the dynamic ones that were asked for."""
    found = [Shapes("fixed", {})]
    if dynamic_shapes is not None:
        found.append(Shapes("dynamic", {"dynamic_shapes": dynamic_shapes}))
    elif dynamic_batch and (sizes := [tensor.shape[0] for tensor in model.inputs.values() if tensor.dim()]):
        batch = (1, sizes[0], 2 * sizes[0]) if dynamic_batch is True else tuple(dynamic_batch)
        found.append(Shapes(f"batch {batch[0]} to {batch[-1]}", {"dynamic_batch": batch}))
    return found
