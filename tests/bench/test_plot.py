"""bench --plot: the contents of the picture, and errors before anything is measured."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

from bitexport.bench import BenchReport, BenchRow, bench
from bitexport.bench.plot import plot
from bitexport.errors import OutputError, UsageError
from bitexport.system.picture import check_picture

Maker = Callable[..., Path]
Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def report(gguf_of: Maker) -> BenchReport:
    file = gguf_of("packed-multiply")
    return bench(
        file, threads=[1, 2], prompt_tokens=[16, 32], generated_tokens=[4], batches=[1, 4], repetitions=2
    )


def texts(report: BenchReport, path: Path) -> list[str]:
    """The texts in the picture: matplotlib draws letters as outlines, with the text in a comment."""
    plot(report, path)
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def dashed_lines(path: Path) -> int:
    return sum("stroke-dasharray" in element.get("style", "") for element in ElementTree.parse(path).iter())


def percentages(rows: list[BenchRow]) -> Counter[str]:
    return Counter(f"{row.percent_of_limit:.0f}%" for row in rows)


def test_a_line_for_every_test_and_batch(report: BenchReport, tmp_path: Path) -> None:
    calm = replace(report, rows=[replace(row, limit_change=0.0) for row in report.rows])
    words = texts(calm, tmp_path / "p.svg")
    assert [word for word in words if word.startswith(("pp", "tg"))] == ["pp16", "pp32", "tg4", "tg4 x 4"]
    assert {word for word in words if word.startswith("100%:")} == {
        "100%: multiply-add peak",
        "100%: lower of memory speed and multiply-add peak",
    }
    assert {"Prefill", "Decode: the weights fit the caches, memory does not limit"} <= set(words)
    assert Counter(word for word in words if word.endswith("%")) == percentages(calm.rows)
    # one limit for prefill, one per batch, and one in each legend
    assert dashed_lines(tmp_path / "p.svg") == 1 + 2 + 2
    assert not any("disturbed" in word for word in words)
    assert "?B" in report.model
    assert not any("?B" in word for word in words)


def test_the_nearer_limit_counts(report: BenchReport) -> None:
    row = BenchRow("tg4", 1, 50.0, 0.0, 4, 10.0, 25.0, 100.0, 40.0)
    assert row.percent_of_limit == 40
    assert row.limit_tokens_per_second == 125
    assert replace(row, percent_of_multiply_adds=None).limit_tokens_per_second == 200
    for row in report.rows:
        speeds = []
        if row.memory_read_gbps is not None:
            speeds.append(row.batch * row.memory_read_gbps * 1e9 / report.bytes_per_token)
        if row.multiply_add_gps is not None:
            speeds.append(row.multiply_add_gps * 1e9 / report.multiply_adds_per_token)
        assert row.limit_tokens_per_second == pytest.approx(min(speeds))


def test_one_thread_count_still_has_a_limit(report: BenchReport, tmp_path: Path) -> None:
    decode = [row for row in report.rows if row.test == "tg4" and (row.threads, row.batch) == (2, 1)]
    path = tmp_path / "p.svg"
    words = texts(replace(report, rows=decode), path)
    assert "100%: memory speed" in words
    assert "Prefill" not in words
    dashes = [e for e in ElementTree.parse(path).iter() if "stroke-dasharray" in e.get("style", "")]
    ends = [path.get("d", "").split() for path in dashes]
    limit = next(end for end in ends if end.count("L") == 1 and float(end[4]) - float(end[1]) > 100)
    assert limit[2] == limit[5]  # a level line across the panel


def test_disturbed_rows_are_marked(report: BenchReport, tmp_path: Path) -> None:
    rows = [replace(row, limit_change=0.5) for row in report.rows]
    words = texts(replace(report, rows=rows), tmp_path / "p.svg")
    assert words.count("disturbed: limits moved") == 2


def test_kernels_without_a_limit(report: BenchReport, tmp_path: Path) -> None:
    rows = [
        replace(row, multiply_add_gps=None, percent_of_multiply_adds=None)
        for row in report.rows
        if row.test == "pp16"
    ]
    words = texts(replace(report, rows=rows), tmp_path / "p.svg")
    assert "no limit known: kernels without a multiply-add instruction" in words
    assert not any("100%" in word for word in words)


def test_many_threads(report: BenchReport, tmp_path: Path) -> None:
    row = next(row for row in report.rows if row.test == "tg4")
    counts = [64, 1, 2, 4, 8, 16, 32]
    rows = [replace(row, threads=count, tokens_per_second=10.0 * count) for count in counts]
    words = texts(replace(report, rows=rows), tmp_path / "p.svg")
    assert [word for word in words if word in set(map(str, sorted(counts)))][:7] == [
        str(count) for count in sorted(counts)
    ]


def test_nothing_to_draw(report: BenchReport, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        plot(replace(report, rows=[]), tmp_path / "p.png")
    with pytest.raises(UsageError, match=r"must end in \.png or \.svg"):
        plot(report, tmp_path / "p.jpg")
    assert list(tmp_path.iterdir()) == []


def test_check_picture_finds_errors_without_writing(tmp_path: Path) -> None:
    check_picture(tmp_path / "P.PNG")
    with pytest.raises(UsageError, match=r"p: a picture's name must end in \.png or \.svg"):
        check_picture(tmp_path / "p")
    with pytest.raises(OutputError, match=r"folder .*none does not exist; create it first"):
        check_picture(tmp_path / "none" / "p.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc accepts no files, not even from root")
def test_a_folder_that_accepts_no_files() -> None:
    with pytest.raises(OutputError, match=r"/proc/p\.png: .*choose another location"):
        check_picture(Path("/proc/p.png"))


def test_the_command(gguf_of: Maker, tmp_path: Path, run_cli: Cli) -> None:
    path = tmp_path / "p.png"
    path.write_text("before")
    result = run_cli(
        *(
            "bench",
            gguf_of("packed-multiply"),
            "-t",
            "1,2",
            "--prompt-tokens",
            "16",
            "-n",
            "2",
            "-r",
            "1",
            "--json",
        ),
        *("--plot", path),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert len(json.loads(result.stdout)["rows"]) == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.png"]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--plot", "p.jpg"), 2, "must end in .png or .svg"),
        (("--plot", "none/p.png"), 1, "none does not exist; create it first"),
        (("--plot", "p.png", "--compare", "f16"), 2, "leave one of them out"),
    ],
)
def test_the_command_fails_before_it_measures(
    tmp_path: Path, run_cli: Cli, options: tuple[str, ...], code: int, message: str
) -> None:
    """Before it even opens the file, which does not exist."""
    result = run_cli("bench", tmp_path / "none.gguf", *options)
    assert result.returncode == code
    assert message in result.stderr
    assert result.stdout == ""


def test_without_matplotlib(tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module\", name='matplotlib')")
    result = run_cli(
        *("bench", tmp_path / "none.gguf", "--plot", tmp_path / "p.png"), env={"PYTHONPATH": str(tmp_path)}
    )
    assert result.returncode == 1
    assert "pip install 'bitexport[plot]'" in result.stderr
