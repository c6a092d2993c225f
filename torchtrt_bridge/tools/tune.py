"""ttb.tune_precision(): the fewest layers that must stay in a higher precision for the results to be good enough."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backends.base import Place
from ..capture import CapturedModel, capture
from ..errors import InvalidOption, RunsOnCPU, TargetUnreachable
from ..lowering import lower
from ..options import BuildOptions
from ..origin import Origin, digest
from ..precision import Precision
from ..progress import Stages
from ..quantization.settings import Quantization
from ..registry import converter
from ..runtime.contents import contents
from ..runtime.module import TRTModule
from ..tracebacks import leaves_no_memory
from ..verify import DEFAULTS
from .candidates import Candidates, error_against
from .goal import Goal, Metric
from .quantizing import Quantizing
from .search import Layers, fewest, first_that_meets
from .trials import Trial, Trials
from .tuned import Sensitivity, TunedPrecision


@leaves_no_memory
def tune_precision(
    model: nn.Module,
    inputs: Any,
    *,
    target_error: float | None = None,
    metric: Metric | None = None,
    target: float | None = None,
    low: str = "fp16",
    high: str | None = None,
    backend: str = "auto",
    dynamic_shapes: Any = None,
    dynamic_batch: tuple[int, int, int] | None = None,
    device: torch.device | str | None = None,
    calibration: Any = None,
    calibration_input: Any = None,
    quantize: Quantization | None = None,
    build: BuildOptions | None = None,
    converters: Any = None,
    resume: str | os.PathLike[str] | None = None,
) -> TunedPrecision:
    """Find the fewest layers that must stay in ``high`` while the others compute in ``low``.

    First the layers are ranked: by what each does to the model's results where it alone is low. Then the shortest head
    of the ranking that meets the target is found by halving, and its members are left out one by one where the rest is
    enough. All of that runs the program with its casts in PyTorch, which has the range and the roundings of each
    precision, and builds nothing. The result is compiled and measured; where TensorRT needs more layers raised than
    PyTorch, they are.

    Args:
        model, inputs: as for :func:`torchtrt_bridge.compile`; also ``backend``, ``dynamic_shapes``, ``dynamic_batch``,
            ``device``, ``calibration``, ``calibration_input``, ``quantize``, ``build`` and ``converters``.
        target_error: largest relative L2 error of any result against eager's, on ``inputs``.
        metric: instead of that, a function of a module that is called as the model is; more is better.
        target: the least that ``metric`` may be.
        low: ``"fp16"``, ``"bf16"``, or, with ``calibration``, ``"int8"`` or ``"fp8"``.
        high: what raised layers compute in. None: fp32, or fp16 where ``low`` is int8 or fp8.
        resume: a file in which the search is kept, so that it can be interrupted and called again.

    Returns:
        A :class:`TunedPrecision`: ``.precision`` is the mapping for ``compile()``, ``.module`` what it compiles to.

    Raises:
        TargetUnreachable: not even all layers in ``high`` meet the target.
        InvalidOption: no target, or precisions that are none.
        InvalidFile: ``resume`` is of another search, or damaged.

    Example:
        >>> import torch, torchtrt_bridge as ttb
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)).eval(), torch.randn(1, 4)
        >>> ttb.tune_precision(model, x, target_error=1e-2).precision
        {'default': 'fp16'}
    """
    from ..asked import Options, ordinary_tensors, parse_device
    from ..compiler import make

    goal = Goal.of(target_error, metric, target)
    low, high = _lower_and_higher(low, high)
    options = Options.parse(low, backend, build, False, False, 8)
    wanted, registered = parse_device(device), converter.snapshot(converters)
    with Stages() as stages, ordinary_tensors():
        with stages("capturing"):
            captured = capture(
                model, inputs, dynamic_shapes=dynamic_shapes, dynamic_batch=dynamic_batch, converters=registered
            )
            captured = lower(captured, registered)
        place = Place(wanted or captured.device)
        with stages("calibrating"):
            quantizing = Quantizing(captured, low, place, calibration, calibration_input, quantize)
        rest = (quantize and quantize.other) or "fp16"
        candidates = Candidates(captured, low, high, quantizing, rest if place.needs_plan else None)
        problem = _problem(model, captured, goal, [low, high, *quantizing.describe()], str(place), options)
        trials = Trials(candidates.layers, goal.passes, problem, resume)

        def compiled(raised: Layers) -> TRTModule:
            given, precision = quantizing(Precision.parse(candidates.mapping(raised)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RunsOnCPU)
                chosen = Options.parse(precision, backend, build, False, False, 8)
                return make(given, place, chosen, stages, Origin.of(model, None))

        search = _Search(captured, candidates, trials, goal, compiled, stages)
        return search.run(low, high)


class _Search:
    def __init__(
        self,
        captured: CapturedModel,
        candidates: Candidates,
        trials: Trials,
        goal: Goal,
        compiled: Callable[[Layers], TRTModule],
        stages: Stages,
    ):
        self._inputs, self._candidates, self._trials, self._goal = captured.inputs, candidates, trials, goal
        self._compiled, self._stages = compiled, stages
        self._expected = captured.eager(captured.inputs)
        self._module: tuple[Layers, TRTModule] | None = None

    def run(self, low: str, high: str) -> TunedPrecision:
        everything = frozenset(self._candidates.layers)
        lowest, highest = self._try(frozenset()), self._try(everything)
        if not highest.passed:
            raise TargetUnreachable(
                f"Not even with all {len(everything)} layers in {high} is the target met: {self._goal.name}"
                f" {highest.score:.3g}, and {self._goal.limit:.3g} was asked for; all in {low}: {lowest.score:.3g}."
                " Choose another target, or a higher precision with high=."
            )
        if lowest.passed and self._try_compiled(frozenset()).passed:
            ranked: list[str] = []
            settled: Layers = frozenset()
        else:
            own, effect = self._sensitivities()
            ranked = sorted(everything, key=lambda layer: (-math.isinf(own[layer]), -effect[layer], -own[layer], layer))
            settled = self._settle(ranked, high)
        final = self._try_compiled(settled)
        return TunedPrecision(
            precision=self._candidates.mapping(settled),
            raised=final.raised,
            low=low,
            high=high,
            measure=self._goal.name,
            target=self._goal.limit,
            score=final.score,
            low_score=lowest.score,
            high_score=highest.score,
            layers=self._candidates.layers,
            sensitivities=tuple(Sensitivity(name, own[name], effect[name], name in settled) for name in ranked),
            trials=tuple(self._trials.done),
            module=self._module_of(settled),
        )

    def _sensitivities(self) -> tuple[dict[str, float], dict[str, float]]:
        """What each layer loses by itself, and what the results lose where it alone is low. That is always their error,
        for which a metric and its data are not needed."""
        everything = frozenset(self._candidates.layers)
        effect = {}
        with self._stages("ranking") as progress:
            own = self._candidates.alone(self._inputs)
            for number, layer in enumerate(self._candidates.layers):
                progress(f"layer {number + 1} of {len(everything)}", number / len(everything))
                effect[layer] = self._trials(everything - {layer}, "ranking", partial(self._error, layer)).score
        return own, effect

    def _error(self, layer: str) -> float:
        module = self._candidates.module(set(self._candidates.layers) - {layer})
        return error_against(self._expected, module.run_flat(self._inputs))

    def _settle(self, ranked: Sequence[str], high: str) -> Layers:
        found = fewest(ranked, lambda raised: self._try(raised).passed)
        settled = first_that_meets(found, ranked, lambda raised: self._try_compiled(raised).passed)
        if settled is None:
            raise TargetUnreachable(
                f"By PyTorch, {len(found)} layers in {high} are enough; compiled, not even all {len(ranked)} are:"
                f" {self._goal.name} {self._try_compiled(frozenset(ranked)).score:.3g}, and {self._goal.limit:.3g} was"
                " asked for. ttb.compare() shows which layer is off."
            )
        return settled

    def _try(self, raised: Layers) -> Trial:
        def score() -> float:
            return self._goal.score(self._candidates.module(raised), self._inputs, self._expected)

        with self._stages("searching") as progress:
            progress(f"{len(raised)} of {len(self._candidates.layers)} layers raised", 0.0)
            return self._trials(raised, "program", score)

    def _try_compiled(self, raised: Layers) -> Trial:
        return self._trials(
            raised, "compiled", lambda: self._goal.score(self._module_of(raised), self._inputs, self._expected)
        )

    def _module_of(self, raised: Layers) -> TRTModule:
        if self._module is None or self._module[0] != raised:
            self._module = None  # one engine at a time
            self._module = raised, self._compiled(raised)
        return self._module[1]


def _lower_and_higher(low: Any, high: Any) -> tuple[str, str]:
    """The names of both. Raises InvalidOption where they are none that can be tuned, or the wrong way round."""
    if high is None:
        high = "fp16" if Precision.parse(low).quantized else "fp32"
    names = []
    for option, value in (("low", low), ("high", high)):
        precision = Precision.parse(value)
        if precision.rules or (option == "high" and precision.quantized):
            raise InvalidOption(
                f"{option}={value!r}: low may be 'int8', 'fp8', 'bf16' or 'fp16', and high 'bf16', 'fp16' or 'fp32'."
            )
        names.append(precision.name)
    if DEFAULTS[names[0]].relative_l2 <= DEFAULTS[names[1]].relative_l2:
        raise InvalidOption(f"low={names[0]!r}, high={names[1]!r}: high must be the more precise of the two.")
    return names[0], names[1]


def _problem(
    model: nn.Module, captured: CapturedModel, goal: Goal, precisions: list[str], place: str, options: Any
) -> Mapping[str, Any]:
    """All that the scores depend on, for the file of an interrupted search."""
    data = hashlib.sha256()
    for tensor in captured.inputs:
        data.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        data.update(contents(tensor))
    return {
        "model": digest(model),
        "inputs": data.hexdigest(),
        "measure": goal.name,
        "precisions": precisions,
        "place": place,
        "route": options.backend,
        "build": repr(options.build),
        "torch": torch.__version__,
    }
