"""The web page in a real browser: it chats, stops, asks for the key, and needs nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitexport.runtime.completion import Completion, Sampling
from bitexport.serve import Server
from bitexport.serve.command import PAGE
from tests.support.browser import NAMES, Browser, find_browser

PROGRAM = find_browser()
needs_browser = pytest.mark.skipif(PROGRAM is None, reason=f"none of {', '.join(NAMES)} is installed")

PROMPT = "The quick brown fox"
LAST = "document.querySelector('.message.model:last-child')"
DONE = f"{LAST}?.querySelector('footer') && !document.querySelector('.busy')"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path / "profile") as opened:
        yield opened


def set_temperature(browser: Browser, value: float, limit: int) -> None:
    browser.run(
        f"""for (const [id, value] of [["temperature", {value}], ["limit", {limit}]]) {{
            document.getElementById(id).value = value;
            document.getElementById(id).dispatchEvent(new Event("input", {{ bubbles: true }}));
        }}"""
    )


def ask(browser: Browser, text: str) -> None:
    browser.run("document.getElementById('text').focus()")
    browser.write(text)
    browser.press("Enter")


@needs_browser
def test_a_conversation(browser: Browser, server: Server, model: Path) -> None:
    browser.visit(server.url)
    browser.wait_for("document.getElementById('state')?.textContent == 'Ready'")
    assert browser.run("document.title") == model.stem
    set_temperature(browser, 0, 12)
    ask(browser, PROMPT)
    browser.wait_for(DONE)
    expected = "".join(Completion(model, PROMPT, sampling=Sampling(temperature=0), max_tokens=12, threads=2))
    assert browser.run(f"{LAST}.querySelector('.body').textContent") == expected.lstrip()
    statistics = browser.run(f"{LAST}.querySelector('.statistics').textContent")
    assert re.fullmatch(r"12 tokens · [\d.]+ tokens/s · stopped at the limit", statistics)

    # the second question carries the first one and its answer
    ask(browser, "again")
    browser.wait_for(f"document.querySelectorAll('.message').length == 4 && {DONE}")
    follow_up = PROMPT + expected + "again"
    second = "".join(Completion(model, follow_up, sampling=Sampling(temperature=0), max_tokens=12, threads=2))
    assert browser.run(f"{LAST}.querySelector('.body').textContent") == second.lstrip()

    browser.run("document.getElementById('new').click()")
    assert browser.run("document.querySelectorAll('.message').length") == 0


@needs_browser
def test_stop_and_the_system_prompt(browser: Browser, long_model: Path) -> None:
    with Server(long_model, port=0, slots=1, threads=1, ctx=32768) as server:
        browser.visit(server.url)
        browser.wait_for("document.getElementById('state')?.textContent == 'Ready'")
        set_temperature(browser, 0, 100_000)
        ask(browser, PROMPT)
        browser.wait_for(f"{LAST}?.querySelector('.body').textContent.length > 20")
        browser.press("Escape")
        browser.wait_for(DONE)
        assert "stopped" in browser.run(f"{LAST}.querySelector('.statistics').textContent")
        assert browser.run("document.activeElement.id") == "text"

        browser.run("document.getElementById('new').click()")
        browser.run("document.getElementById('system').value = 'def add'")
        set_temperature(browser, 0, 8)
        ask(browser, "(left, right):")
        browser.wait_for(DONE)
        text = browser.run(f"{LAST}.querySelector('.body').textContent")
    expected = Completion(long_model, "def add(left, right):", sampling=Sampling(temperature=0), max_tokens=8)
    assert text == "".join(expected).lstrip()


@needs_browser
def test_without_a_template_it_continues_a_text(browser: Browser, without_template: Path) -> None:
    with Server(without_template, port=0, slots=1) as server:
        browser.visit(server.url)
        browser.wait_for("document.getElementById('send')?.textContent == 'Continue'")
        set_temperature(browser, 0, 8)
        ask(browser, PROMPT)
        browser.wait_for(DONE)
        shown = browser.run(f"{LAST}.querySelector('.body').textContent")
    sampling = Sampling(temperature=0)
    assert shown == PROMPT + "".join(
        Completion(without_template, PROMPT, sampling=sampling, max_tokens=8, threads=2)
    )


@needs_browser
def test_it_asks_for_the_key(browser: Browser, model: Path) -> None:
    with Server(model, port=0, slots=1, api_key="secret-1") as server:
        browser.visit(server.url)
        browser.wait_for("document.activeElement?.id == 'key'")
        browser.write("wrong")
        browser.press("Enter")
        browser.wait_for("document.getElementById('key-error').textContent != ''")
        browser.write("secret-1")
        browser.press("Enter")
        browser.wait_for("document.getElementById('state').textContent == 'Ready'")
        assert browser.run("document.getElementById('composer').hidden") is False


@needs_browser
def test_what_a_model_writes_is_never_html(browser: Browser, without_template: Path) -> None:
    with Server(without_template, port=0, slots=1) as server:
        browser.visit(server.url)
        browser.wait_for("document.getElementById('send')?.textContent == 'Continue'")
        set_temperature(browser, 0, 1)
        ask(browser, "<img src=x onerror='document.title=1'>")
        browser.wait_for(DONE)
        assert browser.run("document.querySelectorAll('main img').length") == 0


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_it_fits_the_window(server: Server, tmp_path: Path, width: int, dark: bool) -> None:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path / "profile", width=width, height=640, dark=dark) as browser:
        browser.visit(server.url)
        browser.wait_for("document.getElementById('state')?.textContent == 'Ready'")
        set_temperature(browser, 1, 60)
        ask(browser, PROMPT)
        browser.wait_for(DONE)
        browser.run("document.getElementById('settings-button').click()")
        assert browser.run("document.documentElement.scrollWidth") <= width
        box = "document.getElementById('composer').getBoundingClientRect()"
        assert browser.run(f"{box}.bottom") <= 640
        background = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 300) == dark


def test_every_control_has_a_name() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    for identifier in re.findall(r'<(?:input|textarea)[^>]* id="([\w-]+)"', page):
        assert f'<label for="{identifier}"' in page, identifier
    assert '<html lang="en">' in page


def test_nothing_comes_from_elsewhere() -> None:
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, file
        assert "innerHTML" not in text, file
