"""What a user sees: every table in a terminal of 80 columns, help, short options, completion."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.cli import app
from bitexport.cli.fitting import NARROWEST, broken, column_widths, table_width
from bitexport.convert import convert
from tests.cli.test_main import COMMANDS
from tests.support.diffusion import as_block_diffusion
from tests.support.embedding_models import embedding_checkpoint
from tests.support.terminal import Terminal

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]
WIDTH = 80


@pytest.fixture(scope="module")
def place(
    checkpoint_of: Maker, gguf_of: Maker, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """``place("GGUF")`` -> a path for a word in capital letters, and other words as they are."""
    folder = tmp_path_factory.mktemp("looks")
    embedding = embedding_checkpoint(folder / "embedding")
    convert(embedding, folder / "embedding.gguf", embed_type="f16")
    (folder / "text.txt").write_text("def add(left, right):\n    return left + right\n" * 8)
    (folder / "prompts.txt").write_text("def add(left, right):\nThe quick brown\n")
    (folder / "pairs.jsonl").write_text('{"prompt": "def f", "answer": "(x): return x"}\n' * 3)
    blocks = as_block_diffusion(checkpoint_of("packed-multiply"), folder / "blocks")
    convert(blocks, folder / "blocks.gguf", embed_type="f16")
    paths = {
        "CKPT": checkpoint_of("packed-multiply"),
        "GGUF": gguf_of("packed-multiply"),
        "OUT": folder / "out.gguf",
        "EMBED_CKPT": embedding,
        "EMBED": folder / "embedding.gguf",
        "TEXT": folder / "text.txt",
        "BLOCKS": folder / "blocks.gguf",
        "PROMPTS": folder / "prompts.txt",
        "PAIRS": folder / "pairs.jsonl",
        "TEACHER": checkpoint_of("packed-multiply", seed=1),
    }
    return lambda word: str(paths.get(word, word))


#: A command for every table, and the headings of its tables.
TABLES = [
    ("inspect CKPT", ["key value", "tensor type shape bytes scale"]),
    ("inspect GGUF", ["key value", "tensor type shape bytes scale"]),
    ("convert CKPT OUT --force", ["type tensors before after bits/weight zeros"]),
    (
        "parity CKPT GGUF --prompt def --prompt x --layers --noise-floor --tokens 2",
        [
            "prompt tokens cosine min top-1 KL max diff greedy",
            "plain aligned noise floor",
            "step isolated length ratio aligned plain",
        ],
    ),
    ("parity EMBED_CKPT EMBED --prompt def", ["text tokens tokens' cosine min embedding's cosine"]),
    ("bench GGUF -t 1 -r 1 --prompt-tokens 8 -n 2", ["| threads | test | t/s | % memory | % multiply-add |"]),
    (
        "bench GGUF -t 1 -r 1 --prompt-tokens 8 -n 2 -b 1,2",
        ["| threads | B | test | t/s | % memory | % multiply-add |"],
    ),
    (
        "bench GGUF -t 1 -r 1 --prompt-tokens 8 -n 0 --compare q4_0",
        ["| test | threads | type | size | t/s | speed-up | interval |"],
    ),
    (
        "bench GGUF -t 1 -r 1 -n 8 --draft lookup",
        ["| text | threads | per pass | plain | drafted | ratio | range |"],
    ),
    (
        "bench BLOCKS -t 1 -r 2 -n 8 --decode block --rules greedy,confidence:0.95 --prompts PROMPTS",
        ["| rule | threads | per pass | plain | blocks | ratio | range |"],
    ),
    ("run GGUF -p def -n 3 --logprobs 3", ["token log p most likely, with log p"]),
    ("embed EMBED --text def", ["text tokens vector [128]"]),
    (
        "doctor CKPT GGUF --text TEXT",
        [
            "stage perplexity skill entropy P(end of text)",
            "next weights both c++",
            "tensor layers layer norm",
        ],
    ),
    ("eval CKPT --student-gguf GGUF --text TEXT", ["student-python student-c++"]),
    (
        "eval CKPT --student-gguf GGUF --teacher TEACHER --text TEXT --pairs PAIRS --max-tokens 4",
        ["teacher-python student-python student-c++"],
    ),
]


@pytest.mark.parametrize(("command", "headings"), TABLES, ids=[command for command, _ in TABLES])
def test_no_column_is_lost(place: Callable[[str], str], command: str, headings: list[str]) -> None:
    with Terminal(*map(place, command.split()), columns=WIDTH) as terminal:
        terminal.finish()
        # without the progress bar, which moves the cursor
        lines = [line.rstrip() for line in terminal.shown.split("\n")]
        lines = [line for line in lines if "━" not in line and "-:--:--" not in line]
    shown = [" ".join(line.split()) for line in lines]
    for heading in headings:
        assert heading in shown, "\n".join(lines)
        # the first row has all its cells, and none is cut
        at = shown.index(heading)
        assert lines[at + 2].strip(), lines[at : at + 4]
    assert [line for line in lines if len(line) > WIDTH] == []
    tables = [line for line in lines if re.match(r"\||  ?\S.*   ", line)]
    assert not any(line.endswith("…") for line in tables if "vector" not in line and "+" not in line), tables


def test_a_model_with_long_names(gguf_of: Maker) -> None:
    """In a narrow terminal a name is divided, and everything of it is there."""
    model = gguf_of("packed-multiply")
    with Terminal("inspect", model, columns=56) as narrow:
        narrow.finish()
        first = [re.split(r"\s{2,}", line.strip())[0] for line in narrow.shown.split("\n")]
    assert "blk.0.attn_sub_norm.weight" not in first
    text = "".join(first)
    for name in ("blk.0.attn_sub_norm.weight", "general.quantization_version"):
        assert name in text


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("some words here", 15, ["some words here"]),
        ("some words here", 10, ["some words", "here"]),
        ("model.layers.0.mlp.down_proj.weight_scale", 34, ["model.layers.0.mlp.down_proj.", "weight_scale"]),
        ("a modules_to_not_convert", 12, ["a modules_", "to_not_", "convert"]),
        ("unbreakable", 4, ["unbreakable"]),
    ],
)
def test_text_is_divided_where_it_can_be(text: str, width: int, lines: list[str]) -> None:
    assert broken(text, width).split("\n") == lines


def test_columns_of_text_become_narrower_and_numbers_do_not() -> None:
    columns, row = ("name", "value", "number"), ["n" * 50, "v" * 40, "1234567890"]
    widths = column_widths(columns, [row], (False, False, True), WIDTH)
    assert table_width(widths) == WIDTH
    assert widths[2] == 10
    assert abs(widths[0] - widths[1]) <= 1
    assert column_widths(columns, [row], (False, False, True), 200) == [50, 40, 10]
    assert column_widths(columns, [row], (False, False, True), 10) == [NARROWEST, NARROWEST, 10]


def _commands() -> dict[str, list[str]]:
    """The names of all options of all commands, an entry for each option."""
    import typer

    group = typer.main.get_command(app)
    context = typer.Context(group)
    return {
        name: [" ".join(option.opts) for option in command.get_params(context)]
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


def test_a_short_option_has_one_meaning() -> None:
    meanings: dict[str, set[str]] = {}
    for options in _commands().values():
        for names in map(str.split, options):
            long = [name for name in names if name.startswith("--")]
            for short in (name for name in names if re.fullmatch("-[a-z]", name)):
                meanings.setdefault(short, set()).add(long[0])
    # the number of tokens to generate, in tests and in a text
    assert meanings.pop("-n") == {"--gen-tokens", "--max-tokens"}
    assert {short: found for short, found in meanings.items() if len(found) > 1} == {}
    assert meanings["-q"] == {"--quiet"}


def test_every_command_can_be_quiet() -> None:
    for name, options in _commands().items():
        assert any("--quiet" in option.split() for option in options), name


@pytest.mark.parametrize("command", [*COMMANDS, "train"])
def test_help_fits(command: str, run_cli: Cli) -> None:
    shown = run_cli(command, "--help", env={"COLUMNS": str(WIDTH)}).stdout
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "…" not in shown
    for word in ("<bool>", "<int", "<float", "<str>", "<path>  Show"):
        assert word not in shown


def test_aliases_are_in_the_help_and_work(run_cli: Cli) -> None:
    shown = " ".join(run_cli("run", "--help", env={"COLUMNS": "200"}).stdout.split())
    for alias in ("--temp", "--n-predict", "--ctx-size"):
        assert f"Also {alias}." in shown
    assert "Also --outtype." in " ".join(run_cli("convert", "-h", env={"COLUMNS": "200"}).stdout.split())


def test_completion(run_cli: Cli) -> None:
    assert "--install-completion" in run_cli("--help").stdout
    words = {"COMP_WORDS": "bitexport ch", "COMP_CWORD": "1", "_BITEXPORT_COMPLETE": "complete_bash"}
    done = run_cli(env=words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["chat"]


def test_a_failed_check_is_told_once_on_a_terminal(
    checkpoint_of: Maker, gguf_of: Maker, run_cli: Cli
) -> None:
    arguments = ("parity", checkpoint_of("packed-multiply"), gguf_of("packed-multiply"))
    impossible = (*arguments, "--prompt", "def", "--tokens", "0", "--plain", "--min-cosine", "1")
    with Terminal(*impossible, columns=WIDTH) as terminal:
        assert terminal.finish() == 3
        assert "FAIL" in terminal.shown
        assert "failed:" not in terminal.shown
    assert run_cli(*impossible).stderr.startswith("failed: ")
