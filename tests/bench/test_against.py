"""``bench --against`` pairs us with any program that has llama-bench's options and JSON."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.bench.measure import BenchTest
from bitexport.bench.peer import Peer
from bitexport.errors import BitexportError, UsageError
from tests.support.repository import REPOSITORY

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]

#: A program that answers as llama-bench does, and keeps its arguments; what it gets wrong is its first one.
PROGRAM = """
import json, os, signal, sys
wrong, log, *given = sys.argv[1:]
with open(log, "a") as file:
    print(*given, file=file)
options = dict(zip(given[::2], given[1::2]))
prompt, generated, threads = (int(options[name]) for name in ("-p", "-n", "-t"))
assert options["-o"] == "json" and options["-r"] == "1"
if wrong == "exit" and generated:
    sys.exit("first line\\nno such model\\n")
if wrong == "crash" and generated:
    print("about to die", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
row = {"build_commit": "abc123", "model_type": "2B TQ2_0", "model_size": 123456789, "n_threads": threads,
       "n_prompt": prompt, "n_gen": generated, "n_depth": 0, "avg_ts": 5.0, "samples_ts": [5.0]}
if wrong == "names":
    row["n_prompt"] = 512
if wrong == "speed":
    row["avg_ts"] = "fast"
if wrong == "threads":
    row["n_threads"] = 7
if wrong == "text":
    print("| model | t/s |")
elif wrong == "silent":
    print("usage: something else", file=sys.stderr)
else:
    print(json.dumps([] if wrong == "empty" else [row]))
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """The command line of a program with a certain fault, or with none."""
    script = tmp_path / "peer.py"
    script.write_text(PROGRAM)
    return lambda wrong: shlex.join([sys.executable, str(script), wrong, str(tmp_path / "log")])


def test_rounds_alternate_and_are_paired(
    gguf_of: Maker, run_cli: Cli, program: Callable[[str], str], tmp_path: Path
) -> None:
    numbers = ("-t", "1", "--prompt-tokens", "16", "-n", "4", "-r", "3", "--json")
    result = run_cli("bench", gguf_of("packed-multiply"), "--against", program("nothing"), *numbers)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    name = Path(sys.executable).name
    assert [(row["test"], row["type"]) for row in document["rows"]] == [
        ("pp16", "i2_s"), ("pp16", name), ("tg4", "i2_s"), ("tg4", name)
    ]  # fmt: skip
    assert document["peers"] == [
        {"type": name, "command": program("nothing"), "model": "2B TQ2_0", "build": "abc123"}
    ]
    assert document["bytes"][name] == 123456789
    for ours, theirs in (document["rows"][:2], document["rows"][2:]):
        assert theirs["tokens_per_second"] == 5.0
        assert theirs["ratio"] == pytest.approx(ours["tokens_per_second"] / 5.0, rel=0.2)
        assert theirs["ratio_low"] <= theirs["ratio"] <= theirs["ratio_high"]
        assert theirs["confidence"] == {1: 0.0, 2: 0.5, 3: 0.75}[theirs["rounds"]]
    # a process for each round, and one to warm up
    asked = (tmp_path / "log").read_text().splitlines()
    assert asked == ["-p 16 -n 0 -t 1 -r 1 -o json"] * 4 + ["-p 0 -n 4 -t 1 -r 1 -o json"] * 4


def test_the_table(gguf_of: Maker, run_cli: Cli, program: Callable[[str], str]) -> None:
    numbers = ("-t", "1", "--prompt-tokens", "8", "-n", "0", "-r", "1", "--load", "1")
    both = ("--compare", "q4_0", "--against", program("nothing"), "--against", program("nothing"))
    result = run_cli("bench", gguf_of("packed-multiply"), *both, *numbers)
    assert result.returncode == 0, result.stderr
    rows = [line.split("|") for line in result.stdout.splitlines() if " pp8 " in line]
    name = Path(sys.executable).name
    assert [row[3].strip() for row in rows] == ["i2_s", "q4_0", name, f"{name} 2"]
    shown = " ".join(result.stdout.split())
    assert f"{name} 2: {program('nothing')} (2B TQ2_0, abc123), a process per round" in shown
    assert "beside 1 busy process" in shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("exit", "ended with code 1 in tg4: no such model; try it alone: "),
        ("crash", "was ended by SIGSEGV in tg4: about to die; try it alone: "),
        (
            "names",
            r"was asked for tg4 and answered with n_prompt 512, n_gen 4; expected one object with n_prompt 0",
        ),
        ("empty", "was asked for tg4 and answered with no test"),
        ("speed", "says avg_ts 'fast' for tg4; expected tokens per second"),
        ("threads", "ran tg4 with 7 threads instead of 1; leave out of --against what sets them"),
        ("text", r"did not print one JSON document, as `-o json` does in tg4: \| model \| t/s \|"),
        ("silent", "printed nothing on stdout in tg4: usage: something else"),
    ],
)
def test_what_a_program_can_get_wrong(program: Callable[[str], str], wrong: str, message: str) -> None:
    with pytest.raises(BitexportError, match=message) as caught:
        Peer(program(wrong)).seconds(BenchTest("tg", 4), 1)
    assert "\n" not in str(caught.value)


def test_a_failure_ends_the_command(gguf_of: Maker, run_cli: Cli, program: Callable[[str], str]) -> None:
    numbers = ("-t", "1", "--prompt-tokens", "8", "-n", "4", "-r", "1")
    result = run_cli("bench", gguf_of("packed-multiply"), "--against", program("crash"), *numbers)
    assert (result.returncode, result.stdout) == (1, "")
    assert "was ended by SIGSEGV in tg4: about to die" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "no-such-program -m x"], "there is no program no-such-program"),
        (["--against", ""], "--against is empty"),
        (["--against", "a 'b"], "is not a command line: No closing quotation"),
        (["--against", "true", "--batch", "2"], "--batch and --against do not go together"),
        (["--against", "true", "--keep", "."], "--keep is for the twins of --compare"),
        (["--load", "9999"], "9999 busy processes were requested"),
    ],
)
def test_wrong_usage(gguf_of: Maker, run_cli: Cli, arguments: list[str], message: str) -> None:
    result = run_cli("bench", gguf_of("packed-multiply"), *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr


def test_a_program_that_cannot_start(tmp_path: Path) -> None:
    script = tmp_path / "peer"
    script.write_bytes(b"\x7fELF not really")
    script.chmod(0o755)
    with pytest.raises(BitexportError, match="peer does not start: "):
        Peer(str(script)).seconds(BenchTest("pp", 8), 1)
    with pytest.raises(UsageError, match="there is no program"):
        Peer(str(tmp_path / "none"))


@pytest.fixture(scope="module")
def llama_bench() -> Path:
    program = REPOSITORY / "build/native/bin/llama-bench"
    if not program.is_file():
        pytest.skip("build/native/bin/llama-bench is not built; make tools builds it")
    return program


def test_the_real_llama_bench(gguf_of: Maker, run_cli: Cli, llama_bench: Path) -> None:
    model = gguf_of("packed-multiply")
    numbers = ("-t", "1", "--prompt-tokens", "16", "-n", "4", "-r", "2", "--json")
    command = shlex.join([str(llama_bench), "-m", str(model)])
    result = run_cli("bench", model, "--against", command, *numbers)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert [row["type"] for row in document["rows"]] == ["i2_s", "llama-bench"] * 2
    assert document["peers"][0]["build"].startswith("llama-cpp-python-")
    assert document["bytes"]["llama-bench"] == document["bytes"]["i2_s"]
    assert all(row["tokens_per_second"] > 0 for row in document["rows"])


def test_the_real_llama_bench_without_its_model(llama_bench: Path, tmp_path: Path) -> None:
    command = shlex.join([str(llama_bench), "-m", str(tmp_path / "none.gguf")])
    assert subprocess.run([llama_bench, "--help"], capture_output=True, check=False).returncode == 0
    with pytest.raises(BitexportError, match=r"llama-bench ended with code 1 in pp8: .*none\.gguf"):
        Peer(command).seconds(BenchTest("pp", 8), 1)
