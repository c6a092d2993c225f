"""The Python blocks of README.md and docs/*.md run as they stand, those of one page in order and in one namespace.

A block after ``<!-- not run: why -->`` is left out.
"""

from __future__ import annotations

import linecache
import logging
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^(?P<note><!-- not run: .+ -->\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """``(line of the page, source)`` of each block that is to run."""
    text = page.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        if match["note"] is None:
            found.append((text.count("\n", 0, match.start("code")) + 1, match["code"]))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    logger = logging.getLogger("torchtrt_bridge")
    level = logger.level
    for line, code in blocks(page):
        source = "\n" * (line - 1) + code  # so that a traceback names the page's own line
        name = str(page.relative_to(ROOT))
        monkeypatch.setitem(linecache.cache, name, (len(source), None, source.splitlines(True), name))
        try:
            exec(compile(source, name, "exec"), namespace)
        finally:
            logger.setLevel(level)  # a page may show how to set it


def test_readme_shows_code_that_runs() -> None:
    assert len(blocks(ROOT / "README.md")) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_of_the_project_hold(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text("utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_every_module_is_in_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    modules = [path for path in (ROOT / "torchtrt_bridge").rglob("*.py") if path.name != "__init__.py"]
    missing = [str(path.relative_to(ROOT)) for path in modules if f"`{path.name}`" not in page]
    assert not missing
