"""In which dtype an operator of a captured graph computes: the low one, or float32, and why.

The rule goes by the operator's class (:mod:`.operator_classes`). Exceptions to "follow" keep numbers right that
autocast gets wrong; they need to know a little about where a float32 tensor comes from, which is what :class:`Trait`
records:

* Arithmetic between a low tensor and a statistic of it (``x / x.norm().clamp_min(1e-12)``, ``x * rsqrt(...)``) runs in
  float32, as a fused normalization does: the statistic itself may have no value in 16 bits.
* So does arithmetic with a number that the low dtype turns into 0 or infinity (``+ 1e-12``, ``scores + mask`` where
  the mask is ``finfo(float32).min``). Numbers that only fill or bound (``masked_fill``, ``clamp``) are clamped instead.
* So does arithmetic with a float32 input of the user, which may be such a mask. Where one meets a low tensor otherwise
  (``cat``, ``where``), or is an attention's mask, it is clamped to the finite range first; infinities stay.
* A matrix product of tables alone (positions times frequencies: integers and vectors of constants, no float input)
  stays in float32; float16 has no odd numbers above 2048.
"""

from __future__ import annotations

import collections
import enum
import functools
import math
import operator
from collections.abc import Callable, Mapping

import torch
from torch.fx import Graph, Node

from .fx_nodes import arguments, has_complex, is_float, numbers
from .operator_classes import ARITHMETIC, BOUNDS, FILLS, LOW, STATISTICS, runs_fp32


class Trait(enum.Flag):
    """Where a float32 tensor comes from, as far as casting it down depends on that."""

    NONE = 0
    TABLE = enum.auto()  # from integers, shapes and vectors of constants alone
    STATISTIC = enum.auto()  # a sum, a power, a tiny number: what a stream is normalized by
    HUGE = enum.auto()  # a number in the program puts values beyond the low dtype's range into it
    OPEN = enum.auto()  # a float input of the user: any value


class DtypeChoice:
    """Which dtype each node computes in. The nodes asked about are those of the old graph; their inputs, and all that
    is remembered, are nodes of the new one.

    Args:
        graph: the old graph.
        low_of: the low dtype that each of its nodes was asked to have; float32 where it is to run in that.

    Attributes:
        lows: the low dtypes in use, without float32.
        traits: what is known of each new node.
        constants: the tensors of those new nodes that are parameters, buffers or constants.
    """

    def __init__(self, graph: Graph, low_of: Callable[[Node], torch.dtype]):
        self.low_of = low_of
        asked = {low_of(node) for node in graph.nodes if node.op == "call_function"}
        self.lows = frozenset(asked - {torch.float32})
        self.traits: dict[Node, Trait] = collections.defaultdict(lambda: Trait.NONE)
        self.constants: dict[Node, torch.Tensor] = {}
        self._ranges = {dtype: _Range(dtype) for dtype in (*self.lows, torch.float32)}
        self._narrowest = min(self._ranges.values(), key=lambda span: span.max)

    def dtype(self, node: Node, name: str, floats: list[Node]) -> torch.dtype:
        """The dtype that ``node`` computes in, its low one or float32; ``floats`` are its float inputs."""
        low = self.low_of(node)
        if low == torch.float32 or runs_fp32(node, name, low) or has_complex(node):
            return torch.float32
        if name in LOW:
            tables = bool(floats) and all(Trait.TABLE in self.traits[n] for n in floats)
            return torch.float32 if tables else low
        if not any(map(self.is_low, floats)):
            return torch.float32
        values, span = list(numbers(node)), self._ranges[low]
        if any(span.vanishes(v) for v in values):
            return torch.float32
        if name not in FILLS and any(span.overflows(v) for v in values):
            return torch.float32
        delicate = Trait.STATISTIC | Trait.HUGE | Trait.OPEN
        if name in ARITHMETIC and any(self._tensor_traits(n) & delicate for n in floats):
            return torch.float32
        return low

    def bounds(self, node: Node, name: str, dtype: torch.dtype, new: Mapping[Node, Node]) -> dict[Node, float]:
        """The float inputs to clamp before they are cast down to ``dtype``, and the bound; ``new`` has the new node of
        each old one.

        A mask that is to be added to scores gets half the range, so that the sum is finite too.
        """
        if dtype == torch.float32:
            return {}
        bounds = {}
        largest = self._ranges[dtype].max
        for old, argument in arguments(node):
            read = new[old]
            if name in LOW and read in self.constants and argument != "attn_mask":
                continue  # a weight: _store in .precision clamps what has to be, and says so
            traits = self._tensor_traits(read)
            if argument == "attn_mask" or (name in LOW and "add" in name and argument == "self"):
                if Trait.HUGE in traits or (argument == "attn_mask" and Trait.OPEN in traits):
                    bounds[read] = largest / 2
            elif Trait.HUGE in traits or (name not in LOW and Trait.OPEN in traits):
                bounds[read] = largest
        return bounds

    def clamp(self, node: Node, value: float) -> float:
        """``value`` within the range of the low dtype of ``node``."""
        return self._ranges[self.low_of(node)].clamp(value)

    def is_low(self, node: Node) -> bool:
        """Whether the new ``node`` is a tensor in a low dtype."""
        return node.meta["val"].dtype in self.lows

    def result_traits(self, node: Node, name: str, inputs: list[Node], dtype: torch.dtype) -> Trait:
        """The traits of what ``node`` makes from ``inputs`` when it computes in ``dtype``."""
        table = Trait.TABLE if all(Trait.TABLE in self.traits[n] for n in inputs) else Trait.NONE
        if not is_float(node.meta["val"]) and not isinstance(node.meta["val"], (tuple, list)):
            return Trait.TABLE  # a mask or an index: what it selects decides, not what it was made from
        if name in STATISTICS:
            return table | Trait.STATISTIC
        if dtype != torch.float32 or name in LOW or runs_fp32(node, name, self.low_of(node)):
            return table
        floats = [n for n in inputs if is_float(n.meta["val"])]
        streams = [self._tensor_traits(n) for n in floats if n not in self.constants]
        constants = [self._tensor_traits(n) for n in floats if n in self.constants]
        values = list(numbers(node))
        result = table
        if name not in BOUNDS:
            result |= _union(streams + constants) & (Trait.HUGE | Trait.OPEN)
            if any(map(self.is_low, floats)):
                result &= ~Trait.OPEN  # part of the stream from here on
            if any(self._narrowest.overflows(v) for v in values):
                result |= Trait.HUGE
        statistic = all(Trait.STATISTIC in t for t in streams) if streams else Trait.STATISTIC in _union(constants)
        if statistic or any(self._narrowest.vanishes(v) for v in values):
            result |= Trait.STATISTIC
        return result

    def _tensor_traits(self, node: Node) -> Trait:
        """The traits of a new node that a low operator may read; a constant's are read off its values."""
        if self.is_low(node):
            return Trait.NONE
        traits = self.traits[node]
        if node in self.constants:
            traits |= self._narrowest.traits(self.constants[node])
        return traits


class _Range:
    """The numbers that a low dtype has."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.max = torch.finfo(dtype).max
        self._known: dict[int, Trait] = {}

    def overflows(self, value: float) -> bool:
        return math.isfinite(value) and abs(value) > self.max

    def vanishes(self, value: float) -> bool:
        return value != 0 and torch.tensor(value, dtype=torch.float64).to(self.dtype).item() == 0

    def clamp(self, value: float) -> float:
        return math.copysign(self.max, value) if self.overflows(value) else value

    def traits(self, tensor: torch.Tensor) -> Trait:
        """HUGE where finite values have none in the low dtype; STATISTIC for a single number that becomes 0."""
        if id(tensor) not in self._known:
            low = tensor.to(self.dtype)
            huge = bool((low.isinf() & tensor.isfinite()).any())
            tiny = tensor.numel() == 1 and bool(((low == 0) & (tensor != 0)).any())
            self._known[id(tensor)] = (Trait.HUGE if huge else Trait.NONE) | (Trait.STATISTIC if tiny else Trait.NONE)
        return self._known[id(tensor)]


def _union(traits: list[Trait]) -> Trait:
    return functools.reduce(operator.or_, traits, Trait.NONE)
