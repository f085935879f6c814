"""The documentation site: it builds, needs no other host, and has everything that the code has."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

from bitexport import errors
from bitexport.cli import app
from tests.support.browser import NAMES, Browser, find_browser
from tests.support.repository import REPOSITORY

PROGRAM = find_browser()
PICTURES = REPOSITORY / "docs" / "pictures"
HOOKS = REPOSITORY / "scripts" / "site" / "hooks.py"

#: Attributes that make a browser load something. Where a reader goes, ``<a href>``, is not one of them.
LOADING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "xlink:href"}


class Document(HTMLParser):
    """The identifiers of a page, where its links lead, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in LOADING or name == "href":
                self.loads.append(value or "")
            elif name == "style":
                self.loads += addresses(value or "")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def addresses(style: str) -> list[str]:
    """What a style sheet loads."""
    return [*re.findall(r"url\(\s*['\"]?([^'\")]+)", style), *re.findall(r"@import\s+['\"]([^'\"]+)", style)]


def build(target: Path) -> subprocess.CompletedProcess[str]:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(target)],
        cwd=REPOSITORY,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does."""
    target = tmp_path_factory.mktemp("site") / "site"
    done = build(target)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return target


@pytest.fixture(scope="module")
def documents(site: Path) -> dict[Path, Document]:
    return {path: Document(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_the_parser_sees_what_would_be_loaded() -> None:
    page = Document(
        '<link href="https://a/x.css"><script src="https://b/y.js"></script><img srcset="https://c/z.png 2x">'
        '<p style="background: url(https://d/p.png)"><a href="https://e/"></a><h2 id="f">'
    )
    assert [urlsplit(address.split()[0]).netloc for address in page.loads] == ["a", "b", "c", "d"]
    assert (page.links, page.ids) == (["https://e/"], {"f"})
    assert addresses('@import "https://g/h.css"; a { src: url("https://i/j.woff2") }') == [
        "https://i/j.woff2",
        "https://g/h.css",
    ]


def test_nothing_is_loaded_from_another_host(site: Path, documents: dict[Path, Document]) -> None:
    assert len(documents) > 30
    for path, document in documents.items():
        for address in document.loads:
            assert not urlsplit(address).netloc, (path, address)
            assert not address.startswith("http"), (path, address)
        inline = re.findall(r"<style[^>]*>(.*?)</style>", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for style in inline:
            assert not any(urlsplit(address).netloc for address in addresses(style)), path
    for path in site.rglob("*.css"):
        for address in addresses(path.read_text(encoding="utf-8")):
            assert address.startswith("data:") or not urlsplit(address).netloc, (path, address)


def test_every_link_leads_somewhere(documents: dict[Path, Document]) -> None:
    for path, document in documents.items():
        for link in document.links + document.loads:
            address = urlsplit(link)
            # the page for missing addresses is shown anywhere, so its links begin at the site's root
            if address.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path, link)
            if address.fragment and target.suffix == ".html" and address.fragment != "__top":
                assert unquote(address.fragment) in documents[target].ids, (path, link)


def test_every_command_has_a_section_with_its_options(documents: dict[Path, Document], site: Path) -> None:
    group: Any = typer.main.get_command(app)
    text = (site / "cli.html").read_text(encoding="utf-8")
    for name, command in group.commands.items():
        assert name in documents[site / "cli.html"].ids
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert not option.startswith("-") or f"<code>{option}</code>" in text, (name, option)


def public_names() -> Iterator[str]:
    """What the packages export: ``bitexport.convert.convert`` and so on."""
    yield "bitexport.load"
    yield from (f"bitexport.errors.{name}" for name, kind in vars(errors).items() if isinstance(kind, type))
    for path in (REPOSITORY / "bitexport").glob("*/__init__.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                yield from (f"bitexport.{path.parent.name}.{name}" for name in ast.literal_eval(node.value))


def test_every_public_name_is_in_the_reference(documents: dict[Path, Document], site: Path) -> None:
    ids = set().union(*(documents[page].ids for page in (site / "api").glob("*.html")))
    names = list(public_names())
    assert len(names) > 100
    assert [name for name in names if name not in ids] == []


def test_every_function_of_the_guide_is_in_the_reference(documents: dict[Path, Document], site: Path) -> None:
    ids = set().union(*(documents[page].ids for page in (site / "api").glob("*.html")))
    guide = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| (`bitexport\..*?) \|", guide, flags=re.MULTILINE):
        for name in re.findall(r"`([\w.]+)`", row):
            assert name in ids or name == "bitexport.train.stages.train", name


def test_docstrings_are_shown_as_text(site: Path) -> None:
    for page in (site / "api").glob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r":(class|func|meth|mod|data|attr):", text), page


def test_links_of_the_repository_become_those_of_the_site() -> None:
    hooks = runpy.run_path(str(HOOKS))
    mend = hooks["_mend_links"]
    assert (
        mend("[a](../benchmarks/head.md#x)", "docs/support.md", "support.md") == "[a](benchmarks/head.md#x)"
    )
    assert mend("[a](../../docs/hub.md)", "examples/en-fr/README.md", "examples/en-fr/README.md") == (
        "[a](../../hub.md)"
    )
    assert mend("[a](https://example.com/b)", "docs/support.md", "support.md") == "[a](https://example.com/b)"
    assert (
        mend("[hub.md](hub.md)", "docs/support.md", "support.md")
        == "[Models on the Hugging Face hub](hub.md)"
    )
    for wrong in ("[a](no-such-page.md)", "![a](pictures)"):
        with pytest.raises(Exception, match="leads"):
            mend(wrong, "docs/support.md", "support.md")


def test_no_code_has_an_escaped_bar(site: Path) -> None:
    text = (site / "cli.html").read_text(encoding="utf-8")
    assert "<code>mean|cls|last</code>" in text
    for page in site.rglob("*.html"):
        assert not re.search(r"<td>[^\n]*<code>[^<]*\\\|", page.read_text(encoding="utf-8")), page


def test_the_diagram_has_every_package() -> None:
    diagram = runpy.run_path(str(HOOKS.parent / "diagram.py"))
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = diagram["replace_mermaid"](page)
    assert "```mermaid" in page
    assert "```mermaid" not in drawn
    boxes = re.findall(r"^    (\w+)$", page, flags=re.MULTILINE)
    assert len(boxes) > 20
    assert all(f">{name}</text>" in drawn for name in boxes)
    arrows = len(re.findall(r"^ .*(?:-->|\.->)", page, flags=re.MULTILINE))
    assert drawn.count("marker-end") == arrows
    with pytest.raises(ValueError, match="expected a box or an arrow"):
        diagram["drawn"]("a ==> b")


def test_pictures_are_small_and_load_nothing() -> None:
    pictures = sorted(PICTURES.iterdir())
    pages = "".join(page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs").rglob("*.md"))
    assert sum(picture.stat().st_size for picture in pictures) < 1_000_000
    for picture in pictures:
        assert f"](pictures/{picture.name})" in pages, f"no page shows {picture.name}"
        if picture.suffix == ".svg":
            text = picture.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text, picture


@pytest.mark.skipif(PROGRAM is None, reason=f"none of {', '.join(NAMES)} is installed")
def test_in_a_browser(site: Path, tmp_path: Path) -> None:
    """Every page fits a phone and asks for nothing else; opened as files, the search finds."""
    assert PROGRAM is not None
    handler = partial(Quiet, directory=str(site))
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        Browser(PROGRAM, tmp_path / "profile", width=390, height=800) as browser,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}/"
        for name in ("index.html", "quickstart.html", "cli.html", "architecture.html", "api/convert.html"):
            browser.visit(root + name)
            browser.wait_for(f"location.pathname == '/{name}' && document.readyState == 'complete'")
            loaded = browser.run("performance.getEntriesByType('resource').map(entry => entry.name)")
            assert len(loaded) > 3
            assert [address for address in loaded if not address.startswith((root, "data:"))] == []
            assert browser.run("document.documentElement.scrollWidth") <= 390, name
        server.shutdown()
        browser.visit((site / "index.html").as_uri())
        browser.wait_for("location.protocol == 'file:' && document.readyState == 'complete'")
        found = "document.querySelectorAll('.md-search-result__item').length"
        browser.wait_for("!document.querySelector('.md-search').hidden")
        browser.run(
            """(() => { const input = document.querySelector('.md-search__input'); input.focus();
                input.value = 'unexplained'; input.dispatchEvent(new Event('input', { bubbles: true }));
                input.dispatchEvent(new KeyboardEvent('keyup', { bubbles: true })); })()"""
        )
        browser.wait_for(f"{found} > 0")
        assert "rounding" in browser.run(
            "document.querySelector('.md-search-result').innerText.toLowerCase()"
        )
