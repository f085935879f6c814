"""The options about drafts: what they report, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.errors import BitexportWarning, GGUFError, UsageError
from bitexport.runtime.completion import Completion, Sampling
from bitexport.runtime.drafts.lookup import LookupDrafts
from bitexport.runtime.drafts.opening import check_drafts
from bitexport.runtime.drafts.pace import Pace, PassCosts
from tests.support.cli import one_line
from tests.support.tiny_models import Shape

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
GREEDY = Sampling(temperature=0)
REPEATING = (
    "def first(value):\n    return value + 1\n\n\ndef second(value):\n    return value + 2\n\n\ndef third("
)


def test_the_command_reports_drafts(shipped: Path, run_cli: Cli) -> None:
    options = ("run", shipped, "-p", REPEATING, "-n", "60", "--temp", "0")
    plain = json.loads(run_cli(*options, "--json", "-q").stdout)
    done = run_cli(*options, "--json", "--draft", "lookup")
    document = json.loads(done.stdout)
    assert document["completion"] == plain["completion"]
    assert "draft" not in plain
    found = document["draft"]
    assert found["source"] == "lookup"
    assert found["exact"] is True
    assert 0 < found["accepted"] <= found["drafted"]
    assert found["passes"] + found["accepted"] == document["tokens"] == 60
    assert f"{60 / found['passes']:.2f} tokens per pass" in done.stderr


def test_a_chat_with_drafts_says_the_same(shipped: Path, run_cli: Cli) -> None:
    options = ("chat", shipped, "--no-template", "--temp", "0", "-n", "40", "--json", "-q")
    messages = f"{REPEATING}\n{REPEATING}\n"
    plain, drafted = (
        json.loads(run_cli(*options, *more, input=messages).stdout)
        for more in ((), ("--draft", "lookup", "--draft-tokens", "7"))
    )
    assert drafted["messages"] == plain["messages"]
    assert sum(answer["accepted"] for answer in drafted["answers"]) > 0
    assert all(answer["accepted"] == 0 for answer in plain["answers"])


def test_numbers_out_of_range(shipped: Path, run_cli: Cli) -> None:
    for number in ("0", "-1", "32", "1000000"):
        options = ("-p", "x", "--draft", "lookup", "--draft-tokens", number)
        assert "expected 1 to 31" in one_line(run_cli("run", shipped, *options), 2)


def test_workers_are_refused(shipped: Path, run_cli: Cli) -> None:
    options = ("-p", "x", "--draft", "lookup", "--workers", "127.0.0.1:1")
    assert "leave out --draft or --workers" in one_line(run_cli("run", shipped, *options), 2)


def test_a_missing_draft_model(shipped: Path, run_cli: Cli) -> None:
    done = run_cli("run", shipped, "-p", "x", "--draft", "/none.gguf")
    assert "/none.gguf" in one_line(done, 1)


def test_a_draft_model_with_other_tokens(shipped: Path, gguf_of: Maker) -> None:
    other = gguf_of("packed-multiply")
    with pytest.raises(
        UsageError, match=r"token \d+ is .* in tiny-python.gguf and .* in the draft model|tokens and the"
    ):
        Completion(shipped, "x", draft=other)


def test_a_file_that_is_no_model(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a model")
    with pytest.raises(GGUFError):
        check_drafts(shipped, tmp_path / "text", 4)


def test_a_draft_model_that_is_larger(gguf_of: Maker) -> None:
    small = gguf_of("packed-multiply")
    large = gguf_of("packed-multiply", shape=Shape(hidden=256, ffn=1024))
    with pytest.warns(BitexportWarning, match="is larger than"):
        check_drafts(small, large, 4)


def test_a_draft_model_with_a_shorter_context(gguf_of: Maker) -> None:
    """Nothing is drafted beyond it, and the text is the same."""
    model = gguf_of("packed-multiply", shape=Shape(context=8192))
    short = gguf_of("packed-multiply", shape=Shape(context=256))
    with pytest.warns(BitexportWarning, match="nothing is drafted beyond"):
        Completion(model, "x", n_ctx=8192, draft=short)


def test_the_longest_match_is_drafted() -> None:
    drafts = LookupDrafts()
    drafts.pace.add_pass(1, 0.001)
    drafts.begin([1, 2, 3, 9, 9, 2, 3, 8, 8, 1, 2, 3])
    # the latest place where 2, 3 stood is followed by 8; but the match before it is longer
    assert drafts._longest_match() == (3, 3)
    drafts.begin([5, 6, 7, 5, 6, 7, 5, 6])
    assert drafts._longest_match() == (5, 5)
    drafts.begin([1])
    assert drafts._longest_match() == (0, 0)


def test_a_repetition_continues_in_the_draft() -> None:
    drafts = LookupDrafts()
    for _ in range(3):
        drafts.pace.add_pass(1, 0.001)
    drafts.begin([*range(50, 60), *([5, 6, 7] * 9)])
    tokens, trusts = drafts.propose(7, None)  # type: ignore[arg-type]
    assert tokens == [5, 6, 7, 5, 6, 7, 5]
    assert trusts == sorted(trusts)


def test_fewer_drafts_when_they_are_wrong() -> None:
    """And none when passes with drafts cost as much as their tokens alone; then a few again, to see."""
    pace = Pace([0.5])
    for _ in range(20):
        pace.add_pass(1, 0.01)
    assert pace.worth([0] * 15) > 0
    for _ in range(30):
        pace.add_pass(4, 0.014, [0] * 3, right=0)
    assert pace.worth([0] * 15) == 0
    for _ in range(2000):
        pace.add_pass(1, 0.01)
    assert pace.worth([0] * 15) > 0


def test_the_cost_of_a_pass_is_learned() -> None:
    costs = PassCosts()
    for _ in range(50):
        costs.add(1, 0.01)
        costs.add(8, 0.08)
    assert costs.multiples()[7] == pytest.approx(8, rel=0.1)
    for _ in range(200):
        costs.add(1, 0.01)
        costs.add(8, 0.01)
    assert costs.multiples()[7] == pytest.approx(1, abs=0.15)
