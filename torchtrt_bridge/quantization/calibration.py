"""Calibration: what data showed of a model's activations, kept in a file and used wherever the model is compiled."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import CalibrationMismatch, InvalidFile, nearest
from ..runtime.files import write_atomically
from .formats import Format
from .histogram import BINS, Histogram
from .ranges import choose_range
from .settings import Quantization

_FORMAT = 1
_CHANNELS = " channels"  # after a tensor's name: its channels' magnitudes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """The histograms of a model's activations, by the names of the operators that take them.

    One calibration serves int8 and fp8, every method of :class:`Quantization`, every route, target and machine.

    Args:
        histograms: ``{"encoder.layer.0.output.dense/linear": Histogram(...)}``. The second input of a product ends in
            ``:1``.
        model: digest of the weights of the model that it is for; ``""`` where that is not known.
        data: digest of the data that it saw; ``""`` where that is not known.
        batches, examples: how many it saw; an example is one entry along axis 0 of the first input.
        ranges: magnitudes that were chosen elsewhere (an old TensorRT calibration table), by tensor; they have no
            histogram.
    """

    histograms: Mapping[str, Histogram]
    model: str = ""
    data: str = ""
    batches: int = 0
    examples: int = 0
    ranges: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def range(self, name: str, form: Format, settings: Quantization, alias: str = "") -> float:
        """The magnitude that becomes the largest number of ``form`` in the tensor ``name``, also known as ``alias``.

        Raises:
            CalibrationMismatch: the calibration does not know that tensor.
        """
        if name in self.histograms:
            return choose_range(self.histograms[name], form, settings)
        for candidate in (name, alias):
            if candidate in self.ranges:
                return self.ranges[candidate]
        known = [*self.histograms, *self.ranges]
        raise CalibrationMismatch(
            f"The calibration has no range for the input of {name}{f' (the tensor {alias!r})' if alias else ''}: it was"
            f" made for another model, or another version of it.{nearest(name, known)} Calibrate again with"
            " torchtrt_bridge.calibrate(model, inputs, data)."
        )

    def check(self, digest: str) -> None:
        """Raise unless this is for the model whose weights have that digest.

        Raises:
            CalibrationMismatch: it is for another.
        """
        if self.model and self.model != digest:
            raise CalibrationMismatch(
                f"The calibration is for a model with other weights (digest {self.model[:12]}; this one's is"
                f" {digest[:12]}), whose activations have other ranges. Calibrate again with"
                " torchtrt_bridge.calibrate(model, inputs, data)."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: the counts as tensors, everything else as JSON in its header."""
        import safetensors.torch

        described = {
            "format": _FORMAT,
            "model": self.model,
            "data": self.data,
            "batches": self.batches,
            "examples": self.examples,
            "histograms": {name: [h.limit, h.low, h.high] for name, h in self.histograms.items()},
            "ranges": dict(self.ranges),
        }
        tensors = {name: histogram.counts for name, histogram in self.histograms.items()}
        channels = {name: h.channels for name, h in self.histograms.items() if h.channels is not None}
        tensors.update({f"{name}{_CHANNELS}": tensor for name, tensor in channels.items()})
        content = safetensors.torch.save(tensors, {"calibration": json.dumps(described, allow_nan=True)})
        write_atomically(path, lambda file: file.write(content))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """The calibration that :meth:`save` wrote.

        Raises:
            InvalidFile: the file is no calibration, or damaged.
        """
        import safetensors

        try:
            with safetensors.safe_open(os.fspath(path), "pt") as file:
                data = json.loads((file.metadata() or {})["calibration"])
                if data["format"] != _FORMAT:
                    raise InvalidFile(f"{path} is a calibration of format {data['format']}; {_FORMAT} is known here.")
                known = set(file.keys())
                histograms = {}
                for name, numbers in data["histograms"].items():
                    channels = file.get_tensor(name + _CHANNELS) if name + _CHANNELS in known else None
                    histograms[str(name)] = _histogram(file.get_tensor(name), channels, *numbers)
            ranges = {str(name): float(value) for name, value in data["ranges"].items()}
            counts = int(data["batches"]), int(data["examples"])
            return cls(histograms, str(data["model"]), str(data["data"]), *counts, ranges)
        except FileNotFoundError:
            raise
        except InvalidFile:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            raise InvalidFile(f"{path} is no saved calibration: {type(error).__name__}: {error}.") from None

    @classmethod
    def from_table(cls, table: bytes | str | os.PathLike[str], names: Mapping[str, str] | None = None) -> Calibration:
        """The ranges of an old TensorRT calibration table: its path, or its content as bytes.

        They are taken as they are, so ``method`` and ``smooth`` have no effect. Data gives more; calibrate again where
        there is some.

        Args:
            names: what the tensors are called here, by their names in the table: what the error names that
                :func:`torchtrt_bridge.compile` raises where one is missing.

        Raises:
            InvalidFile: it is no such table.
        """
        from .old_tables import read_table

        if not isinstance(table, bytes):
            with open(table, "rb") as file:
                table = file.read()
        ranges = read_table(table)
        return cls({}, ranges={(names or {}).get(name, name): amax for name, amax in ranges.items()})

    def to_table(self, settings: Quantization | None = None) -> bytes:
        """The ranges for int8 in the form of an old TensorRT calibration table."""
        from .formats import FORMATS
        from .old_tables import write_table

        settings = settings or Quantization()
        chosen = {name: choose_range(h, FORMATS["int8"], settings) for name, h in self.histograms.items()}
        return write_table({**chosen, **self.ranges})

    def __repr__(self) -> str:
        lines = [self._summary()]
        lines += [f"  {name}: {low:.4g} to {high:.4g}" for name, low, high in self._rows()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from ..tables import facts, paragraph

        rows = [(name, f"{low:.4g} to {high:.4g}") for name, low, high in self._rows()]
        return paragraph(self._summary()) + facts(rows)

    def plot(self, names: Sequence[str] | None = None) -> Any:
        """The histograms of ``names`` (None: the nine with the farthest outliers), with the ranges that each method
        chooses for int8; a matplotlib Figure.

        Raises:
            InvalidOption: a name that the calibration does not know.
        """
        from .plotting import plot

        return plot(self, names)

    def _summary(self) -> str:
        seen = f", {self.examples} examples in {self.batches} batches" if self.batches else ""
        return f"Calibration of {len(self.histograms) + len(self.ranges)} tensors{seen}"

    def _rows(self) -> list[tuple[str, float, float]]:
        rows = [(name, h.low, h.high) for name, h in self.histograms.items()]
        return rows + [(name, -amax, amax) for name, amax in self.ranges.items()]


def _histogram(counts: torch.Tensor, channels: torch.Tensor | None, limit: Any, low: Any, high: Any) -> Histogram:
    if counts.shape != (BINS,) or counts.dtype != torch.float64:
        raise ValueError(f"counts of shape {list(counts.shape)} and {counts.dtype}")
    if channels is not None and (channels.ndim != 1 or channels.dtype != torch.float32):
        raise ValueError(f"channels of shape {list(channels.shape)} and {channels.dtype}")
    return Histogram(counts, float(limit), float(low), float(high), channels)
