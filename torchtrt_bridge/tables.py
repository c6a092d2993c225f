"""Tables as HTML, for notebooks. Every text is escaped: names of inputs and layers come from users and from files."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

_LEFT = "style='text-align:left;vertical-align:top'"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns: a name, and what it is. A row without a name goes on with the one above."""
    body = (
        f"<tr><th {_LEFT}>{html.escape(name)}</th><td {_LEFT}>{html.escape(value)}</td></tr>" for name, value in rows
    )
    return f"<table>{''.join(body)}</table>"


def comparison(rows: Sequence[Mapping[str, Any]]) -> str:
    """Compiled against eager: rows of :class:`~torchtrt_bridge.verify.Row`, as dicts."""
    titles = ("", "result", "at", "relative L2", "max error", "unequal")
    header = "".join(f"<th {_LEFT}>{title}</th>" for title in titles)
    body = "".join(_row(row) for row in rows)
    return f"<table><tr>{header}</tr>{body}</table>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _row(row: Mapping[str, Any]) -> str:
    mark = "&#10003;" if row["passed"] else "<b style='color:#b00'>&#10007;</b>"
    bad = f" ({row['new_nonfinite']} NaN or Inf)" if row["new_nonfinite"] else ""
    values = [
        str(row["result"]),
        str(row["at"]),
        _number(row["relative_l2"], "{:.2e}") + bad,
        _number(row["max_error"], "{:.2e}"),
        _number(row["unequal"], "{:.2%}"),
    ]
    return f"<tr><td>{mark}</td>{''.join(f'<td {_LEFT}>{html.escape(value)}</td>' for value in values)}</tr>"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)
