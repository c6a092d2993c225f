"""``docs/builtin_converters.md`` says what there is."""

from __future__ import annotations

import layers
import table


def test_the_page_is_current() -> None:
    """Else: python tests/converters/table.py"""
    page = table.OUT.read_text()
    assert page.startswith(table.text() + table.LAYERS)
    assert [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines()[-len(layers.NAMES) :]] == layers.NAMES
