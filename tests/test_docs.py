"""The pages: links and paths in them lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

PAGES = sorted(
    [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / "benchmarks").glob("*.md"),
        *(REPOSITORY / "examples").glob("*/README.md"),
    ]
)


def anchors(page: Path) -> set[str]:
    """Of the headings, as they are made into links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = (page.parent / name) if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_paths_of_this_repository_exist(page: Path) -> None:
    """``bitexport/gguf/types.py`` in a code span, braces and asterisks expanded by nobody."""
    folders = "benchmarks|bitexport|docs|examples|native|scripts|tests|train"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8")):
        assert (REPOSITORY / path).exists(), path


def test_readme_is_one_page() -> None:
    """About three minutes at 250 words per minute."""
    words = re.findall(r"\w+", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert len(words) < 1100
