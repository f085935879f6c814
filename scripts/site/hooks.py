"""mkdocs hooks: the pages of the site that are outside docs/, and what GitHub renders but mkdocs does not.

Links in the pages are those of the repository (``../benchmarks/head.md``), so that they work where the source
is read. Here each page that the navigation names is found in the repository, its links become those of the
site, and the pictures and settings that it links to come along.
"""

from __future__ import annotations

import os.path
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "site"))  # mkdocs loads this file by its path

from diagram import replace_mermaid  # noqa: E402

_LINK = re.compile(r"(!?\[[^\]]*\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
# In the cells of a table, GitHub wants a backslash before the bars of code, and Python-Markdown shows it.
_ESCAPED_BAR = re.compile(r"(?<=`)[^`\n]*\\\|[^`\n]*(?=`)")
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def repository_path(page: str) -> str:
    """Where the source of a page of the site is, relative to the repository."""
    return page if page == "CHANGELOG.md" or page.startswith(("benchmarks/", "examples/")) else f"docs/{page}"


def site_path(path: str) -> str:
    """Where a file of the repository is on the site; README.md is summarised by the site's front page."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/")


def _pages(nav: Any) -> list[str]:
    """The pages that the navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in _pages(part)]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the navigation that are outside docs/, and the files that they show or link to."""
    for page in _pages(config.nav):
        source = repository_path(page)
        if not source.startswith("docs/"):
            _add(files, config, source)
        text = (ROOT / source).read_text(encoding="utf-8") if (ROOT / source).exists() else ""
        for _, target, _ in _LINK.findall(_FENCE.sub("", text)):
            linked = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if (ROOT / linked).is_file() and not linked.endswith(".md") and not linked.startswith("docs/"):
                _add(files, config, linked)
    return files


def _add(files: Files, config: MkDocsConfig, path: str) -> None:
    if files.get_file_from_path(path) is None:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """The page with the site's links and pictures."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # it would have one line
    source = repository_path(page.file.src_uri)
    markdown = replace_mermaid(markdown)
    parts = []
    end = 0
    for fence in _FENCE.finditer(markdown):  # what is quoted stays as it is
        parts += [_mend_links(markdown[end : fence.start()], source, page.file.src_uri), fence[0]]
        end = fence.end()
    mended = "".join([*parts, _mend_links(markdown[end:], source, page.file.src_uri)])
    return "\n".join(map(_without_escaped_bars, mended.split("\n")))


def _without_escaped_bars(line: str) -> str:
    return (
        _ESCAPED_BAR.sub(lambda found: found[0].replace(r"\|", "|"), line) if line.startswith("|") else line
    )


def _mend_links(markdown: str, source: str, page: str) -> str:
    """The prose of a page, from ``source`` in the repository, as ``page`` of the site."""

    def mend(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        if not (ROOT / target).exists():
            raise PluginError(f"{source}: the link {found[2]} leads nowhere")
        if (ROOT / target).is_dir():
            raise PluginError(f"{source}: the link {found[2]} leads to a folder; link to a page in it")
        relative = os.path.relpath(site_path(target), posixpath.dirname(page) or ".")
        text = found[1]
        if text == f"[{found[2]}](":  # a file's name means something to those who read the files
            text = f"[{_title(target)}]("
        return f"{text}{relative}{found[3] or ''})"

    return _LINK.sub(mend, markdown)


def _title(path: str) -> str:
    """The first heading of a page of the repository; of another file, its name."""
    heading = re.search(r"^# (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return heading[1] if path.endswith(".md") and heading else posixpath.basename(path)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """The reference of commands in an element of its own, for site.css."""
    return f'<div class="cli">{html}</div>' if page.file.src_uri == "cli.md" else html
