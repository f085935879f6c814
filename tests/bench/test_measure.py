"""bench reports what it measured in the form of llama-bench, and rejects what it cannot measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from bitexport.bench import BenchReport, bench
from bitexport.bench.weights import token_cost
from bitexport.cli.bench import _disturbance
from bitexport.errors import GGUFError, UsageError
from bitexport.gguf.reader import read_gguf
from bitexport.system.machine import resident_bytes

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


def test_decode_rows_are_compared_with_memory(report: BenchReport) -> None:
    for row in report.rows:
        if row.test == "tg4":
            assert row.memory_read_gbps is not None
            expected = 100 * row.tokens_per_second * report.bytes_per_token / (row.memory_read_gbps * 1e9)
            assert row.percent_of_bandwidth == pytest.approx(expected)
            assert row.multiply_add_gps is row.percent_of_multiply_adds is None
        else:
            assert row.memory_read_gbps is row.percent_of_bandwidth is None


def test_prefill_rows_are_compared_with_the_multiply_add_peak(report: BenchReport) -> None:
    # hidden 256, 4 heads and 2 key-value heads of 64, ffn 512, 2 layers
    layer = 256 * 256 * 2 + 256 * 128 * 2 + 256 * 512 * 3
    assert report.multiply_adds_per_token == 2 * layer
    for row in report.rows:
        if row.test != "tg4":
            assert row.multiply_add_gps is not None
            expected = 100 * row.tokens_per_second * 2 * layer / (row.multiply_add_gps * 1e9)
            assert row.percent_of_multiply_adds == pytest.approx(expected)


def test_batches_are_decoded_together(gguf_of: Maker) -> None:
    report = bench(
        gguf_of("packed-multiply"),
        threads=[1],
        prompt_tokens=[],
        generated_tokens=[8],
        batches=[1, 2, 8],
        repetitions=2,
    )
    assert [(row.test, row.batch) for row in report.rows] == [("tg8", 1), ("tg8", 2), ("tg8", 8)]
    single, *together = report.rows
    assert single.percent_of_multiply_adds is None
    for row in together:
        # the weights are read once for the complete batch
        assert row.memory_read_gbps is not None
        steps = row.tokens_per_second / row.batch
        assert row.percent_of_bandwidth == pytest.approx(
            100 * steps * report.bytes_per_token / (row.memory_read_gbps * 1e9)
        )
        assert row.percent_of_multiply_adds is not None


def test_without_a_multiply_add_instruction_there_is_no_percentage(gguf_of: Maker, run_cli: Cli) -> None:
    file = gguf_of("packed-multiply")
    result = run_cli(
        *("bench", file, "-t", "1", "--prompt-tokens", "8", "-n", "0", "-r", "1", "--json"),
        env={"BITEXPORT_TIER": "scalar"},
    )
    (row,) = json.loads(result.stdout)["rows"]
    assert row["multiply_add_gps"] is row["percent_of_multiply_adds"] is None
    result = run_cli(
        *("bench", file, "-t", "1", "--prompt-tokens", "8", "-n", "0", "-r", "1"),
        env={"BITEXPORT_TIER": "scalar"},
    )
    assert "no multiply-add instruction" in result.stdout


def test_a_disturbed_row_is_marked(report: BenchReport) -> None:
    row = replace(report.rows[0], limit_change=0.35)
    assert row.disturbed
    assert not replace(row, limit_change=0.1).disturbed
    document = replace(report, rows=[row]).to_json()
    assert document["rows"][0]["disturbed"] is True
    assert _disturbance(row) == "* disturbed: limits moved by 35%"


def test_json_has_the_documented_keys(report: BenchReport) -> None:
    document = json.loads(json.dumps(report.to_json()))
    assert document.keys() >= CONTRACT
    assert document["rows"][0].keys() >= {"test", "threads", "tokens_per_second", "stddev"}
    fastest = max(document["rows"], key=lambda row: row["tokens_per_second"] if row["test"] == "tg4" else 0)
    assert document["percent_of_bandwidth"] == fastest["percent_of_bandwidth"]
    assert document["load_seconds"] > 0
    assert document["rss_bytes"] > 10e6


def test_a_token_reads_everything_but_an_embedding_that_is_only_looked_up(gguf_of: Maker) -> None:
    def bytes_per_token(tied: bool) -> tuple[int, dict[str, int]]:
        file = gguf_of("packed-multiply", tied=tied)
        sizes = {tensor.name: tensor.nbytes for tensor in read_gguf(file).tensors}
        return token_cost(file).file_bytes, sizes

    found, sizes = bytes_per_token(tied=True)
    assert found == sum(sizes.values())
    found, sizes = bytes_per_token(tied=False)
    assert found == sum(sizes.values()) - sizes["token_embd.weight"]


def test_bytes_are_counted_in_the_layout_in_memory(gguf_of: Maker, run_cli: Cli) -> None:
    """The 32 bytes after every I2_S tensor in the file are not read; 1.6 bits per weight are fewer bytes."""
    file = gguf_of("packed-multiply", tied=True)
    matrices = sum(tensor.type.name == "i2_s" for tensor in read_gguf(file).tensors)

    def per_token(layout: str) -> tuple[int, int]:
        result = run_cli(
            *("bench", file, "-t", "1", "--prompt-tokens", "8", "-n", "0", "-r", "1", "--json"),
            env={"BITEXPORT_TIER": "scalar", "BITEXPORT_LAYOUT": layout},
        )
        document = json.loads(result.stdout)
        return document["bytes_per_token"], document["file_bytes_per_token"]

    two_bit, in_file = per_token("2bit")
    assert two_bit == in_file - 32 * matrices
    assert per_token("1.6bit") < (two_bit, in_file)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_tokens": [], "generated_tokens": []},
        {"threads": [0]},
        {"repetitions": 0},
        {"prompt_tokens": [-3]},
        {"batches": [0]},
    ],
)
def test_nothing_to_measure(gguf_of: Maker, options: dict[str, list[int]]) -> None:
    with pytest.raises(UsageError, match="must be 1 or more"):
        bench(gguf_of("packed-multiply"), **options)  # type: ignore[arg-type]


def test_a_batch_beyond_llama_cpps_limit(gguf_of: Maker) -> None:
    with pytest.raises(UsageError, match=r"batch 257 is too large; llama\.cpp decodes up to 256"):
        bench(gguf_of("packed-multiply"), batches=[257])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GGUFError):
        bench(tmp_path / "none.gguf")


def test_resident_memory_grows_with_written_pages() -> None:
    before = resident_bytes()
    block = bytearray(b"\x01") * (64 << 20)
    assert resident_bytes() - before > 0.9 * len(block)


def test_command(gguf_of: Maker, run_cli: Cli) -> None:
    result = run_cli(
        "bench", gguf_of("packed-multiply"), "-t", "1,2", "--prompt-tokens", "16", "-n", "2", "-r", "1"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    header, _, *rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells == ["threads", "test", "t/s", "% memory", "% multiply-add"]
    # a star marks a disturbed row
    assert [row.split("|")[2].strip(" *") for row in rows] == ["pp16", "tg2"] * 2
    assert "- tg2, 2 threads: memory read at" in result.stdout
    assert "- pp16, 2 threads:" in result.stdout
    assert "in the file) and takes 1.18 M multiply-adds" in result.stdout


def test_command_with_batches(gguf_of: Maker, run_cli: Cli) -> None:
    result = run_cli(
        "bench",
        gguf_of("packed-multiply"),
        "-t",
        "1",
        "--prompt-tokens",
        "0",
        "-n",
        "2",
        "-r",
        "1",
        "-b",
        "1,4",
    )
    assert result.returncode == 0, result.stderr
    header, _, *rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert header.split("|")[2].strip() == "B"
    assert [row.split("|")[2].strip() for row in rows] == ["1", "4"]
    assert "- tg2 x 4, 1 thread: memory read at" in result.stdout


def test_command_in_json(gguf_of: Maker, run_cli: Cli) -> None:
    result = run_cli(
        "bench", gguf_of("packed-multiply"), "--prompt-tokens", "0", "-n", "2", "-r", "1", "--json"
    )
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    assert document.keys() >= CONTRACT
    assert [row["test"] for row in document["rows"]] == ["tg2"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--threads", "two"), ("-b", "x"), ("--prompt-tokens", "1;2"), ("-n", "-5"), ("-r", "0")],
)
def test_command_with_bad_numbers(gguf_of: Maker, run_cli: Cli, option: str, value: str) -> None:
    result = run_cli("bench", gguf_of("packed-multiply"), option, value)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
