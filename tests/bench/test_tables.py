"""The tables of ``bitexport bench`` keep every column in a terminal of 80 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bitexport.bench import BenchReport, BenchRow, CompareReport, CompareRow
from bitexport.cli.bench import _show
from bitexport.cli.bench_compare import _show as _show_comparison
from bitexport.cli.output import Output


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 columns shows."""
    text = io.StringIO()
    monkeypatch.setattr(Output, "_stdout", staticmethod(lambda width=80: Console(file=text, width=width)))
    return text


def table(text: io.StringIO) -> list[list[str]]:
    assert max(map(len, text.getvalue().splitlines())) <= 80
    lines = [line for line in text.getvalue().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_measurements_with_wide_numbers(screen: io.StringIO) -> None:
    calm = BenchRow("pp2048", 128, 12345.67, 1234.56, 1, None, None, 12345.0, 87.4)
    disturbed = BenchRow("tg1024", 128, 12345.67, 1234.56, 256, 1234.5, 100.2, 12345.0, 87.4, 0.35)
    name = "bitnet-b1.58 2B I2_S - 2 bpw ternary with quite a long description"
    report = BenchReport(
        "x.gguf", name, "avx512vnni256", 2412820480, 1 << 30, 1 << 30, 1 << 30, 2084044800, [calm, disturbed],
        1.5, 1 << 30, 1 << 26,
    )  # fmt: skip
    _show(Output(), report)
    header, _, *rows = table(screen)
    assert header == ["threads", "B", "test", "t/s", "% memory", "% multiply-add"]
    assert rows == [
        ["128", "1", "pp2048", "12345.67 ± 1234.56", "", "87%"],
        ["128", "256", "tg1024*", "12345.67 ± 1234.56", "100%", "87%"],
    ]
    shown = " ".join(screen.getvalue().split())
    assert f"x.gguf, {name}: 2.41 B parameters, 1.00 GiB, avx512vnni256 kernels" in shown
    assert "12345 G multiply-adds/s; * disturbed: limits moved by 35%" in shown


def test_comparison_with_wide_numbers(screen: io.StringIO) -> None:
    rows = [
        CompareRow("i2_s", "pp2048", 128, 12345.67, None, None, None, 4, 1, False),
        CompareRow("tq2_0", "pp2048", 128, 12345.67, 10.12, 10.01, 10.23, 4, 1, False, 10.01, 10.23, 0.875),
    ]
    report = CompareReport(
        "x.gguf", "bitnet-b1.58 2B I2_S", "avx2", True, {"i2_s": 1 << 30, "tq2_0": 1 << 30}, rows, []
    )
    _show_comparison(Output(), report)
    header, _, *cells = table(screen)
    assert header == ["test", "threads", "type", "size", "t/s", "speed-up", "interval"]
    assert cells == [
        ["pp2048", "128", "i2_s", "1.00 GiB", "12345.67", "", ""],
        ["pp2048", "128", "tq2_0", "1.00 GiB", "12345.67", "10.12x", "10.01 .. 10.23"],
    ]
