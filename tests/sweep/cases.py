"""One case of the sweep: an operator as a module, with inputs, further inputs, a precision, fixed or dynamic shapes.

The inputs are torch's own samples of an operator's arguments. A sample's tensors become the module's inputs, except a
layer's weights, which become its buffers; all else (dims, flags, sizes) is fixed. The same sample made from another
seed gives other values of the same shapes, on which a compiled module is tried, so that a value baked into it shows.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import operators
import torch
from torch import nn
from torch.utils import _pytree as pytree

#: (name, dtype of the sample, precision, dynamic shapes)
VARIANTS = (
    ("fp32", torch.float32, "fp32", False),
    ("fp32 dynamic", torch.float32, "fp32", True),
    ("fp16", torch.float32, "fp16", False),
    ("fp16 dynamic", torch.float32, "fp16", True),
    ("integers", torch.int64, "fp32", False),
    ("half inputs", torch.float16, "fp16", False),
)
SAMPLES = 2
_LOOKED_AT = 24  # of an operator's samples; some have hundreds

# The operators whose second and later tensors are a layer's weights, which a model holds.
_LAYERS = re.compile(
    r"nn\.functional\.(conv.*|linear|bilinear|.*_norm|prelu|multi_head_attention_forward)"
    r"|native_(batch|group|layer)_norm"
)


@dataclasses.dataclass(frozen=True)
class CaseId:
    """``operator/number of its sample/variant``."""

    operator: str
    sample: int
    variant: str

    def __str__(self) -> str:
        return f"{self.operator}/{self.sample}/{self.variant}"

    @property
    def settings(self) -> tuple[torch.dtype, str, bool]:
        """The sample's dtype, the precision, whether shapes are dynamic."""
        return next(v[1:] for v in VARIANTS if v[0] == self.variant)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """``module(*inputs)`` is the operator; ``others`` are inputs of the same shapes with other values."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    others: tuple[torch.Tensor, ...]


class NoSuchCase(Exception):
    """The operator has no such sample, or not of that dtype. (Not a failure: there is nothing to try.)"""


def all_ids(samples: int = SAMPLES) -> list[CaseId]:
    """Every case that there may be, operator by operator; the last variants for the first sample alone."""
    return [
        CaseId(name, sample, variant)
        for name in operators.operators()
        for sample in range(samples)
        for variant, dtype, _, _ in VARIANTS
        if sample == 0 or dtype == torch.float32
    ]


def tenth() -> list[CaseId]:
    """What the tests try: each tenth operator in fp32 and fp16, one of them with dynamic shapes, in turn."""
    turns = ("fp32", "fp16 dynamic"), ("fp32 dynamic", "fp16")
    chosen = list(operators.operators())[::10]
    return [CaseId(name, 0, variant) for number, name in enumerate(chosen) for variant in turns[number % 2]]


def make(case: CaseId) -> Case:
    """The case's module and inputs, on the CPU, the same ones every time.

    Raises:
        NoSuchCase: see there.
    """
    info = operators.operators()[case.operator]
    dtype = _dtype_for(info, case)
    first = _sample(info, dtype, case.sample, seed=0)
    second = _sample(info, dtype, case.sample, seed=1)
    tensors, module = _as_module(info, first)
    others, _ = _as_module(info, second)
    if [(t.shape, t.dtype) for t in others] != [(t.shape, t.dtype) for t in tensors]:
        others = tuple(t.flip(tuple(range(t.dim()))) for t in tensors)
    return Case(module, tensors, others)


def _dtype_for(info: Any, case: CaseId) -> torch.dtype:
    """float32 for an operator that has it; of the others the one dtype that they take, in the plain variants."""
    wanted = case.settings[0]
    supported = info.supported_dtypes("cpu")
    if case.variant in ("fp32", "fp32 dynamic") and wanted not in supported:
        wanted = torch.int64 if torch.int64 in supported else torch.bool
    elif wanted == torch.int64 and torch.float32 not in supported:
        raise NoSuchCase("its plain variants have integers")
    if wanted not in supported:
        raise NoSuchCase(f"it takes no {wanted}")
    return wanted


def _sample(info: Any, dtype: torch.dtype, number: int, seed: int) -> Any:
    """The ``number``-th of the samples that are chosen: the first usable one, then those that differ most from it."""
    torch.manual_seed(zlib.crc32(info.name.encode()) % 10_000 + seed)
    samples = info.sample_inputs("cpu", dtype, set_seed=False)  # it would be the same seed for every sample
    usable = [s for s in itertools.islice(samples, _LOOKED_AT) if _usable(s)]
    chosen = _spread(usable)
    if number >= len(chosen):
        raise NoSuchCase(f"it has {len(chosen)} samples")
    return chosen[number]


def _usable(sample: Any) -> bool:
    """No empty tensors, no complex ones, one tensor at least that is no scalar, no dropout."""
    tensors = _tensors(sample)
    return (
        bool(tensors)
        and not sample.kwargs.get("dropout_p")
        and all(t.numel() and not t.is_complex() and t.layout == torch.strided for t in tensors)
        and any(t.dim() for t in tensors)
    )


def _spread(samples: Sequence[Any]) -> list[Any]:
    """First the sample with the most dimensions, then the last with other arguments, then those in the middle."""
    distinct: dict[str, Any] = {}
    for sample in samples:
        distinct.setdefault(_outline(sample), sample)
    rest = list(distinct.values())
    if not rest:
        return []
    first = max(rest, key=lambda sample: min(_tensors(sample)[0].dim(), 4))
    rest = [sample for sample in rest if sample is not first]
    return [first, *reversed(rest[1::2]), *rest[::2]]


def _outline(sample: Any) -> str:
    """A sample's arguments with each tensor as its shape."""
    whole = (sample.input, sample.args, sample.kwargs)
    return repr(pytree.tree_map_only(torch.Tensor, lambda t: (tuple(t.shape), t.dtype), whole))


def _tensors(sample: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves((sample.input, sample.args, sample.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _as_module(info: Any, sample: Any) -> tuple[tuple[torch.Tensor, ...], nn.Module]:
    leaves, tree = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    weights = places[1:] if _LAYERS.fullmatch(info.name) else []
    places = [i for i in places if i not in weights]
    inputs = tuple(leaves[i].detach().clone().contiguous() for i in places)
    held = {i: leaves[i].detach().clone().contiguous() for i in weights}
    plain = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return inputs, Operator(info, plain, places, held, tree).eval()


class Operator(nn.Module):
    """One call of an operator, of the tensors that differ from call to call."""

    def __init__(self, info: Any, leaves: list[Any], places: list[int], held: dict[int, torch.Tensor], tree: Any):
        super().__init__()
        self._info, self._leaves, self._places, self._tree = info, leaves, places, tree
        self._held = list(held)
        for place, tensor in held.items():
            self.register_buffer(f"weight{place}", tensor)

    def forward(self, *tensors: torch.Tensor) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors):
            leaves[place] = tensor
        for place in self._held:
            leaves[place] = getattr(self, f"weight{place}")
        first, args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        return self._info(first, *args, **kwargs)


SORTED = {"bucketize": 1, "searchsorted": 0}
"""Which input of an operator has to be sorted; repeated, it would not be, so its size stays."""


def dynamic_axes(inputs: Sequence[torch.Tensor], fixed: int | None = None) -> Iterator[dict[int, int]]:
    """Which axes to make dynamic: ``{number of the input: axis}``, all of one size; the likeliest choice first.

    Each axis of the first input, the first one first: of every input that has the same size there, counted from the
    front, counted from the end (as broadcasting does), and of the first input alone.
    """
    sized = [i for i, t in enumerate(inputs) if t.dim() and i != fixed]
    if not sized:
        return
    lead = sized[0]
    for axis in range(inputs[lead].dim()):
        size = inputs[lead].shape[axis]
        if size < 2:
            continue
        back = axis - inputs[lead].dim()  # counted from the end, as broadcasting does
        leading = {i: axis for i in sized if inputs[i].dim() > axis and inputs[i].shape[axis] == size}
        together = {
            i: back + inputs[i].dim() for i in sized if inputs[i].dim() >= -back and inputs[i].shape[back] == size
        }
        seen: list[dict[int, int]] = []
        for choice in (leading, together, {lead: axis}):
            if choice not in seen:
                seen.append(choice)
                yield choice
