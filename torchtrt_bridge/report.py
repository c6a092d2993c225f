"""What a compilation did, as data: printable, HTML in notebooks, saved with the module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .errors import InvalidFile


@dataclasses.dataclass(frozen=True)
class Report:
    """How a module was made.

    Args:
        backend: the route that made it.
        precision: the precision asked for, and written into the graph.
        runtime: what runs it: ``"tensorrt"``, ``"onnxruntime"`` or ``"torch"``.
        where: the device it runs on, or the target it was built for.
        seconds: wall time of each stage, in seconds.
        kept_fp32: operators that stay in fp32 under a lower precision, and in which modules.
        verification: rows of :class:`~torchtrt_bridge.verify.Row`, as dicts; empty where nothing was run.
        notes: sentences that a reader should know.
        cuda_graph: ``"on"``, ``"off"``, or ``"off: "`` and why, where it was wanted.
        hybrid: of a model that was cut, else empty: ``operations`` of the graph and how many of them are ``outside``
            TensorRT; ``segments`` (route, operations) and the median ``seconds`` of each where they were run;
            ``layers`` outside TensorRT: operator, place in the model, reason, count.
        work: of a TensorRT plan, the matrix and convolution work by precision: ``by``, ``asked``, ``flops``, ``how``
            and ``missed`` as in :class:`~torchtrt_bridge.applied.Applied`.
        precisions: of ``precision="fastest"``, what became of each precision: rows of
            :class:`~torchtrt_bridge.fastest_precision.Candidate`, as dicts.
        routes: what became of each route: rows of :class:`~torchtrt_bridge.selection.Attempt`, as dicts.
    """

    backend: str
    precision: str
    runtime: str
    where: str
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kept_fp32: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    verification: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    cuda_graph: str = "off"
    hybrid: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    work: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    routes: tuple[Mapping[str, Any], ...] = ()
    precisions: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data. A NaN (an error that does not apply) becomes None, as JSON has no NaN."""
        data = dataclasses.asdict(self)
        data["verification"] = [{k: None if v != v else v for k, v in row.items()} for row in self.verification]
        data["notes"] = list(self.notes)
        data["routes"] = [dict(row) for row in self.routes]
        data["precisions"] = [dict(row) for row in self.precisions]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report that :meth:`to_dict` wrote.

        Raises:
            InvalidFile: the data is not what :meth:`to_dict` writes.
        """
        try:
            report = cls._from_dict(data)
            repr(report)  # a field of another type is found here, not when somebody prints it
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InvalidFile(f"The saved report is damaged: {type(error).__name__}: {error}.") from None
        return report

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> Report:
        rows = tuple({k: float("nan") if v is None else v for k, v in row.items()} for row in data["verification"])
        lists = {name: tuple(data.get(name, ())) for name in ("notes", "routes", "precisions")}
        return cls(**{**data, "verification": rows, **lists})

    def __repr__(self) -> str:
        return "\n".join(f"{key:<13}{value}" if key else f"{'':<13}{value}" for key, value in self._lines())

    def _repr_html_(self) -> str:
        from .tables import comparison, facts

        table = comparison(self.verification) if self.verification else ""
        return facts(self._lines(errors=not self.verification)) + table

    def _lines(self, errors: bool = True) -> list[tuple[str, str]]:
        lines = [
            ("route", self.backend),
            ("precision", self.precision),
            ("runs on", f"{self.where} ({self.runtime})"),
            ("seconds", ", ".join(f"{stage} {value:.2f}" for stage, value in sorted(self.seconds.items()))),
        ]
        if self.runtime == "tensorrt":
            lines.append(("CUDA graph", self.cuda_graph))
        if self.kept_fp32:
            kept = (f"{op} ({len(places)} place{'s' * (len(places) > 1)})" for op, places in self.kept_fp32.items())
            lines.append(("kept in fp32", ", ".join(kept)))
        lines += _work(self.work) if self.work else []
        if not self.verification:
            lines.append(("verified", "no: nothing was run"))
        for index, row in enumerate(self.verification if errors else ()):
            if row["unequal"] == row["unequal"]:
                error = f"{row['unequal']:.2%} of elements differ"
            else:
                error = f"relative L2 {row['relative_l2']:.2e}, max error {row['max_error']:.2e}"
            lines.append(("" if index else "verified", f"{row['result']} at {row['at']}: {error}"))
        lines += _outside(self.hybrid) if self.hybrid else []
        lines += [("" if index else "precisions", _candidate(row)) for index, row in enumerate(self.precisions)]
        lines += [("" if index else "routes", _route(row)) for index, row in enumerate(self.routes)]
        lines += [("" if index else "notes", note) for index, note in enumerate(self.notes)]
        return lines


def _route(row: Mapping[str, Any]) -> str:
    """One line of what became of a route."""
    name = row["route"] + (" with a CUDA graph" if row["cuda_graph"] else "")
    time = "" if row["milliseconds"] is None else f", {row['milliseconds']:.3f} ms"
    reason = row["reason"].partition("\n")[0]
    return f"{name}: {row['outcome']}{time}{': ' + reason if reason else ''}"


def _candidate(row: Mapping[str, Any]) -> str:
    """One line of what became of a precision."""
    time = "" if row["milliseconds"] is None else f", {row['milliseconds']:.3f} ms"
    score = "" if row["score"] is None else f", {row['by']} {row['score']:.3g}"
    reason = row["reason"].partition(". ")[0]
    return f"{row['precision']}: {row['outcome']}{time}{score}{': ' + reason if reason else ''}"


def _outside(hybrid: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a cut model leaves to PyTorch."""
    operations, outside, segments = hybrid["operations"], hybrid["outside"], hybrid["segments"]
    plans = sum(segment["tensorrt"] for segment in segments)
    text = f"{plans} of {len(segments)} segments, {operations - outside} of {operations} operations"
    lines = [("in TensorRT", f"{text} ({1 - outside / max(1, operations):.1%})")]
    seconds = hybrid.get("seconds")
    if seconds and sum(seconds):
        slow = sum(time for time, segment in zip(seconds, segments) if not segment["tensorrt"])
        lines.append(("", f"{slow / sum(seconds):.0%} of a call's {sum(seconds) * 1e3:.2f} ms is outside"))
    for index, layer in enumerate(hybrid["layers"]):
        count = f" ({layer['count']} times)" if layer["count"] > 1 else ""
        place = layer["place"] or "the top module"
        lines.append(("" if index else "in PyTorch", f"{layer['operator']} in {place}{count}: {layer['reason']}"))
    return lines


def _work(work: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The matrix and convolution work by precision, and the layers that run in another than was asked for."""
    from .applied import Missed, told

    shares = ", ".join(f"{name} {share:.1%}" for name, share in work["by"].items())
    lines = [("work", f"{shares} of {work['flops'] / 1e9:.3g} GFLOPs ({work['how']})")]
    return lines + [("", line) for line in told([Missed(**row) for row in work["missed"]])]
