"""``bitexport bench --draft``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitexport.cli.bench_text import short_rate, short_ratio
from bitexport.cli.output import Output, counted, excerpt

if TYPE_CHECKING:
    from bitexport.bench import DraftReport


def measure(
    out: Output,
    gguf: Path,
    draft: str | Path | None,
    draft_tokens: int,
    text: Path | None,
    tokens: int,
    threads: list[int],
    rounds: int,
) -> None:
    """Measure and print."""
    from bitexport.bench import bench_drafts

    with out.progress("bench") as progress:
        report = bench_drafts(
            gguf,
            draft or "lookup",
            draft_tokens=draft_tokens,
            text=text,
            generated_tokens=tokens,
            threads=threads,
            rounds=rounds,
            progress=progress,
        )
    out.result(report.to_json(), human=lambda: _show(out, report))


def _show(out: Output, report: DraftReport) -> None:
    out.wrapped(f"{Path(report.path).name}, drafts: {Path(report.draft).name}, {report.tier} kernels")
    columns = ["text", "threads", "per pass", "plain", "drafted", "ratio", "range"]
    rows = [
        (
            excerpt(row.text, 14),
            row.threads,
            f"{row.tokens_per_pass:.2f}",
            short_rate(row.plain),
            short_rate(row.drafted),
            f"{short_ratio(row.ratio)}x",
            f"{short_ratio(row.ratio_min)} .. {short_ratio(row.ratio_max)}",
        )
        for row in report.rows
    ]
    out.table(columns, rows, right=columns[1:], markdown=True)
    rounds = counted(report.rows[0].rounds, "alternating round")
    out.wrapped(
        "per pass: tokens of the given text per evaluation; plain, drafted: tokens per second; ratio: "
        f"drafted divided by plain, median and range over {rounds}, after one that is not counted"
    )
