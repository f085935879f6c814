"""The pairs that training held out, taken from its sources again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.errors import UsageError
from bitexport.evaluation import held_out_pairs, read_pairs, render_pairs, write_pairs
from bitexport.evaluation.items import pair_items
from bitexport.text import Template, read_source, split

Run = Callable[..., subprocess.CompletedProcess[str]]
TAGS = Template("tags", "en", "fr")


@pytest.fixture
def source(tmp_path: Path) -> str:
    for language, word in (("en", "house"), ("fr", "maison")):
        lines = [f"{word} {chr(97 + i % 26) * (2 + i // 26)}" for i in range(200)]
        (tmp_path / f"a.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"parallel:{tmp_path / 'a.en'},{tmp_path / 'a.fr'}"


def test_they_are_the_pairs_that_training_writes(source: str, tmp_path: Path) -> None:
    held_out = split(read_source(source), 20).held_out
    write_pairs(render_pairs(held_out, TAGS, None), tmp_path / "held_out.jsonl")
    expected = [(p.prompt, p.answer, p.source) for p in read_pairs(tmp_path / "held_out.jsonl")]
    found = [(p.prompt, p.answer, p.source) for p in held_out_pairs([source], TAGS, 20)]
    assert found == expected
    assert 10 < len(found) < 80
    assert all(prompt == f"<|en|>{text}<|fr|>" for prompt, _, text in found)


@pytest.mark.parametrize(
    ("template", "percent", "message"),
    [
        ("plain", 20, "--template plain makes no prompt; expected tags"),
        ("tags", 0, "--held-out-percent is 0; expected 1 to 99"),
        ("chat", 20, "none of the models is a folder; expected a checkpoint folder"),
    ],
)
def test_wrong_usage(source: str, template: str, percent: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        held_out_pairs([source], Template(template), percent, ["model.gguf", None])


def test_a_pair_that_does_not_fit(source: str) -> None:
    pairs = held_out_pairs([source], TAGS, 20)
    with pytest.raises(UsageError, match=r"--data, the pair '<\|en\|>house .*held_out.jsonl as --pairs"):
        pair_items(pairs, lambda text, _: [ord(letter) for letter in text], end=0, context=12)


def test_the_command_uses_them(source: str, student: Path, run_cli: Run) -> None:
    asked = ("--data", source, "--template", "tags", "--held-out-percent", "20")
    done = run_cli("eval", student, *asked, "--limit", "2", "--max-tokens", "0", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["pairs"] == 2
    first = held_out_pairs([source], TAGS, 20)[0]
    assert report["samples"][0]["prompt"] == first.prompt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "stdlib", "--pairs", "x.jsonl"), "--data and --pairs exclude each other"),
        (("--data", "stdlib"), "add --template (tags, chat or hy-mt1.5)"),
        (("--template", "tags"), "go together; add --data"),
        (("--data", "parallel:a", "--template", "tags"), "expected two"),
        (("--data", "stdlib", "--template", "tagz"), "did you mean tags?"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], message: str, run_cli: Run) -> None:
    done = run_cli("eval", "no-model", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
