"""bench reports what it measured, in llama-bench's shape, and refuses what it cannot measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.bench import BenchReport, bench
from bitexport.errors import GGUFError, UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.machine import MemoryReader, resident_bytes

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]

CONTRACT = {"model", "rows", "load_seconds", "rss_bytes", "memory_read_gbps", "percent_of_bandwidth"}


@pytest.fixture(scope="module")
def report(gguf_of: Maker) -> BenchReport:
    file = gguf_of("packed-multiply")
    return bench(file, threads=[1, 2], prompt_tokens=[32, 64], generated_tokens=[4], repetitions=2)


def test_every_test_at_every_thread_count(report: BenchReport) -> None:
    names = [(row.test, row.threads) for row in report.rows]
    assert names == [(test, threads) for threads in (1, 2) for test in ("pp32", "pp64", "tg4")]
    assert all(row.tokens_per_second > 0 and row.stddev >= 0 for row in report.rows)


def test_decode_rows_say_how_near_the_memory_they_are(report: BenchReport) -> None:
    for row in report.rows:
        if row.test == "tg4":
            assert row.memory_read_gbps is not None
            expected = 100 * row.tokens_per_second * report.bytes_per_token / (row.memory_read_gbps * 1e9)
            assert row.percent_of_bandwidth == pytest.approx(expected)
        else:
            assert row.memory_read_gbps is row.percent_of_bandwidth is None


def test_json_holds_the_contract(report: BenchReport) -> None:
    document = json.loads(json.dumps(report.to_json()))
    assert document.keys() >= CONTRACT
    assert document["rows"][0].keys() >= {"test", "threads", "tokens_per_second", "stddev"}
    fastest = max(document["rows"], key=lambda row: row["tokens_per_second"] if row["test"] == "tg4" else 0)
    assert document["percent_of_bandwidth"] == fastest["percent_of_bandwidth"]
    assert document["load_seconds"] > 0
    assert document["rss_bytes"] > 10e6


def test_a_token_reads_all_but_an_embedding_that_is_only_looked_up(gguf_of: Maker) -> None:
    def bytes_per_token(tied: bool) -> tuple[int, dict[str, int]]:
        file = gguf_of("packed-multiply", tied=tied)
        sizes = {tensor.name: tensor.nbytes for tensor in read_gguf(file).tensors}
        found = bench(file, prompt_tokens=[], generated_tokens=[1], repetitions=1).bytes_per_token
        return found, sizes

    found, sizes = bytes_per_token(tied=True)
    assert found == sum(sizes.values())
    found, sizes = bytes_per_token(tied=False)
    assert found == sum(sizes.values()) - sizes["token_embd.weight"]


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_tokens": [], "generated_tokens": []},
        {"threads": [0]},
        {"repetitions": 0},
        {"prompt_tokens": [-3]},
    ],
)
def test_nothing_to_measure(gguf_of: Maker, options: dict[str, list[int]]) -> None:
    with pytest.raises(UsageError, match="must be 1 or more"):
        bench(gguf_of("packed-multiply"), **options)  # type: ignore[arg-type]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GGUFError):
        bench(tmp_path / "none.gguf")


def test_memory_speed_is_plausible() -> None:
    # A machine of the last twenty years; beyond 2 TB/s something was not read.
    assert 0.3 < MemoryReader().gigabytes_per_second(threads=2, passes=2) < 2000


def test_resident_memory_grows_with_what_is_written() -> None:
    before = resident_bytes()
    block = bytearray(b"\x01") * (64 << 20)
    assert resident_bytes() - before > 0.9 * len(block)


def test_command(gguf_of: Maker, run_cli: Cli) -> None:
    result = run_cli("bench", gguf_of("packed-multiply"), "-t", "1,2", "-p", "16", "-n", "2", "-r", "1")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    header, _, *rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells == ["model", "size", "params", "threads", "test", "t/s", "% of memory speed"]
    assert [row.split("|")[5].strip() for row in rows] == ["pp16", "tg2"] * 2
    assert "memory read by 2 threads" in result.stdout


def test_command_in_json(gguf_of: Maker, run_cli: Cli) -> None:
    result = run_cli("bench", gguf_of("packed-multiply"), "-p", "0", "-n", "2", "-r", "1", "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    assert document.keys() >= CONTRACT
    assert [row["test"] for row in document["rows"]] == ["tg2"]


@pytest.mark.parametrize(
    ("option", "value"), [("--threads", "two"), ("-p", "1;2"), ("-n", "-5"), ("-r", "0")]
)
def test_command_with_bad_numbers(gguf_of: Maker, run_cli: Cli, option: str, value: str) -> None:
    result = run_cli("bench", gguf_of("packed-multiply"), option, value)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
