"""What ttb.check_converter() found: one trial for each form, route, sample, precision and kind of shapes."""

from __future__ import annotations

import dataclasses
import html
import io
import math
import shutil
from typing import Any

from ..errors import ConverterFailed

_BAD = ("differs", "failed")
_ORDER = ("agrees", "built", *_BAD)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One form, on one route, with one sample.

    Args:
        form: ``"aten"``, ``"tensorrt"``, ``"onnx"`` or ``"plugin"``.
        route: its name; ``"every route"`` where the call did not come so far.
        place: what ran it, or was to: ``"cpu"``, ``"cuda:0"``, ``"a GPU elsewhere"``.
        sample: the sample in words.
        precision: as :func:`torchtrt_bridge.compile` takes it.
        shapes: ``"fixed"``, or what was dynamic: ``"batch 1 to 4"``.
        outcome: ``"agrees"`` with eager within the tolerance; ``"built"``: TensorRT made a plan, which no GPU here can
            run; ``"differs"``; ``"failed"``; ``"skipped"``: the form does not go there.
        error: the largest relative L2 error of its results; NaN where nothing was compared.
        reason: why it is not ``"agrees"`` or ``"built"``, or what that leaves open.
    """

    form: str
    route: str
    place: str
    sample: str
    precision: str
    shapes: str
    outcome: str
    error: float = math.nan
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the form."""
        return self.outcome not in _BAD


@dataclasses.dataclass(frozen=True)
class ConverterCheck:
    """A converter's forms against eager, wherever they can be used.

    Args:
        converter: what was checked: its target, and where it is written.
        forms: the names of its forms.
        trials: rows of :class:`Trial`.
    """

    converter: str
    forms: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def passed(self) -> bool:
        """Whether no trial speaks against a form, and each form was used in at least one."""
        return all(trial.passed for trial in self.trials) and not self.unused

    @property
    def failures(self) -> tuple[Trial, ...]:
        """The trials that speak against a form."""
        return tuple(trial for trial in self.trials if not trial.passed)

    @property
    def unused(self) -> tuple[str, ...]:
        """The forms that no trial could use; nothing is known of them."""
        used = {trial.form for trial in self.trials if trial.outcome != "skipped"}
        return tuple(form for form in self.forms if form not in used)

    def raise_if_failed(self) -> None:
        """For a test.

        Raises:
            ConverterFailed: not :attr:`passed`; the message has the table.
        """
        if not self.passed:
            raise ConverterFailed(f"{self.verdict}\n{self}")

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.failures:
            forms = ", ".join(dict.fromkeys(trial.form for trial in self.failures))
            return f"{self.converter} is not right in {len(self.failures)} of {len(self.trials)} trials, of {forms}."
        if self.unused:
            return f"{self.converter}: nothing here could use its form {', '.join(self.unused)}."
        ran = sum(trial.outcome == "agrees" for trial in self.trials)
        built = sum(trial.outcome == "built" for trial in self.trials)
        agrees = [f"agrees with eager in {ran} trial{'s' * (ran > 1)}"] if ran else []
        unrun = [f"{built} plan{'s' * (built > 1)} built, and not run where there is no GPU"] if built else []
        return f"{self.converter}: {'; '.join(agrees + unrun)}."

    def table(self) -> list[dict[str, Any]]:
        """A dict for each trial, as ``pandas.DataFrame`` takes them."""
        return [dataclasses.asdict(trial) for trial in self.trials]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**dataclasses.asdict(self), "passed": self.passed}

    def __repr__(self) -> str:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        columns, rows = self._cells()
        table = Table(box=None, pad_edge=False)
        for title in ("form", "route", "on"):
            table.add_column(title, no_wrap=True)
        for title in columns:
            table.add_column(Text(title))
        for cells in rows:
            table.add_row(*map(Text, cells))
        text = io.StringIO()
        if rows:
            width = shutil.get_terminal_size((120, 24)).columns
            Console(file=text, width=width, color_system=None, force_jupyter=False).print(table)
        shown = [line.rstrip() for line in text.getvalue().splitlines()]
        return "\n".join([self.verdict, *shown, *self._reasons()])

    def _repr_html_(self) -> str:
        columns, rows = self._cells()
        head = "".join(f"<th style='text-align:left'>{html.escape(t)}</th>" for t in ("form", "route", "on", *columns))
        body = ""
        for cells in rows:
            inner = "".join(
                f"<td style='text-align:left{';background:#f8d7da;color:#000' if cell.isupper() else ''}'>"
                f"{html.escape(cell)}</td>"
                for cell in cells
            )
            body += f"<tr>{inner}</tr>"
        reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in self._reasons())
        caption = f"<caption>{html.escape(self.verdict)}</caption>"
        return f"<table>{caption}<tr>{head}</tr>{body}</table><ul>{reasons}</ul>"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """A row for each form, route and place where there was something to try; a column for each precision and kind
        of shapes, with the worst of the samples."""
        columns = dict.fromkeys((trial.precision, trial.shapes) for trial in self.trials)
        found: dict[tuple[str, str, str], dict[tuple[str, str], list[Trial]]] = {}
        for trial in self.trials:
            if trial.outcome != "skipped":
                row = found.setdefault((trial.form, trial.route, trial.place), {})
                row.setdefault((trial.precision, trial.shapes), []).append(trial)
        rows = [[*key, *(_cell(row.get(column, [])) for column in columns)] for key, row in found.items()]
        return [f"{precision}, {shapes}" for precision, shapes in columns], rows

    def _reasons(self) -> list[str]:
        """What stands behind the cells, the same thing once."""
        found: dict[tuple[str, str, str], list[str]] = {}
        for trial in self.trials:
            if trial.reason:
                found.setdefault((trial.route, trial.outcome, trial.reason), []).append(trial.form)
        return [
            f"{', '.join(dict.fromkeys(forms))} by {route}, {outcome} ({len(forms)}): {reason}"
            for (route, outcome, reason), forms in found.items()
        ]


def _cell(trials: list[Trial]) -> str:
    if not trials:
        return "-"
    worst = max(trials, key=lambda trial: _ORDER.index(trial.outcome))
    errors = [trial.error for trial in trials if not math.isnan(trial.error)]
    shown = worst.outcome if worst.passed else worst.outcome.upper()
    return f"{shown} {max(errors):.0e}" if errors else shown
