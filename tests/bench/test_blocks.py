"""``bench --decode block`` reports tokens per pass and tokens per second beside plain decoding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.bench.blocks import bench_blocks
from bitexport.blocks import BlockRule
from bitexport.cli import app
from bitexport.convert import convert
from bitexport.errors import UsageError
from tests.support.diffusion import as_block_diffusion

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def model(checkpoint_of: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    convert(as_block_diffusion(checkpoint_of(), folder / "c"), folder / "c.gguf", embed_type="f16")
    return folder / "c.gguf"


def test_rules_are_compared_with_plain_decoding(
    model: Path, tmp_path: Path, run_cli: Callable[..., CompletedProcess[str]]
) -> None:
    (tmp_path / "prompts.txt").write_text("def add(left, right):\nThe quick brown\n")
    options = ("--decode", "block", "--prompts", tmp_path / "prompts.txt", "-n", "8", "-r", "2", "-t", "1")
    found = json.loads(run_cli("bench", model, *options, "--rules", "greedy,confidence:0", "--json").stdout)
    greedy, free = found["rows"]
    assert (greedy["rule"], greedy["tokens"], free["tokens"]) == ("greedy", 16, 16)
    assert greedy["tokens_per_pass"] <= 1.3  # the first token of a block comes with the block before
    assert free["passes"] < greedy["passes"]
    assert all(row["ratio_min"] <= row["ratio"] <= row["ratio_max"] for row in found["rows"])
    shown = run_cli("bench", model, *options)
    assert "| confidence:0.9 |" in shown.stdout
    assert "2 prompts and 16 tokens" in shown.stdout
    wrong = run_cli("bench", model, *options, "--rules", "confidence:x")
    assert wrong.returncode == 2
    assert "--rules has 'confidence:x'" in wrong.stderr
    with pytest.raises(UsageError, match=r"the rule greedy has no threshold, and 0.5 was given"):
        app(["bench", str(model), "--decode", "block", "--rules", "greedy:0.5"], standalone_mode=False)


def test_what_cannot_be_measured_is_refused(model: Path, gguf_of: Maker) -> None:
    with pytest.raises(UsageError, match="is a plain model"):
        bench_blocks(gguf_of(), ["a"])
    with pytest.raises(UsageError, match="expected at least one prompt"):
        bench_blocks(model, [])
    with pytest.raises(UsageError, match="exceed the context"):
        bench_blocks(model, ["a"], rules=[BlockRule()], max_tokens=100_000)


def test_options_that_do_not_go_together(model: Path) -> None:
    extras = (
        ("--batch", "2"),
        ("--workers", "127.0.0.1:9"),
        ("--layers", "1"),
        ("--load", "1"),
        ("--keep", "."),
        ("--plot", "x.png"),
        ("-n", "8,16"),
    )
    for options in extras:
        with pytest.raises(UsageError, match="--decode block is alone"):
            app(["bench", str(model), "--decode", "block", *options], standalone_mode=False)
    with pytest.raises(UsageError, match="--decode is 'plain'; expected block"):
        app(["bench", str(model), "--decode", "plain"], standalone_mode=False)
    with pytest.raises(UsageError, match="--prompts is for --decode block"):
        app(["bench", str(model), "--prompts", "x.txt"], standalone_mode=False)
    with pytest.raises(UsageError, match="--rules is for --decode block"):
        app(["bench", str(model), "--rules", "greedy"], standalone_mode=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--decode", "block", "--draft", "lookup"), "--draft and --decode"),
        (("--decode", "block", "--compare", "f16"), "--decode and --compare"),
        (("--decode", "block", "--against", "true"), "--decode and --against"),
        (("--draft", "lookup", "--against", "true"), "--draft and --against"),
    ],
)
def test_one_thing_is_measured_at_a_time(model: Path, options: tuple[str, ...], named: str) -> None:
    with pytest.raises(UsageError, match=f"{named} do not go together"):
        app(["bench", str(model), *options], standalone_mode=False)
