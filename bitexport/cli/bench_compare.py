"""``bitexport bench --compare`` and ``--against``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitexport.cli.bench_text import model_name, show_load, threads_text
from bitexport.cli.output import Output, counted, format_bytes

if TYPE_CHECKING:
    from bitexport.bench import CompareReport


def compare_files(out: Output, gguf: Path, **arguments: Any) -> None:
    """Compare and show; ``arguments`` are those of :func:`bitexport.bench.compare`."""
    from bitexport.bench import compare as run

    with out.progress("bench") as progress:
        report = run(gguf, **arguments, progress=progress)
    out.result(report.to_json(), human=lambda: _show(out, report))


def _show(out: Output, report: CompareReport) -> None:
    out.wrapped(model_name(report.path, report.model))
    columns = ["test", "threads", "type", "size", "t/s", "speed-up", "interval"]
    rows = [
        (
            row.test,
            row.threads,
            row.type,
            format_bytes(report.bytes[row.type]) if row.type in report.bytes else "",
            f"{row.tokens_per_second:.2f}",
            "" if row.ratio is None else f"{row.ratio:.2f}x",
            "" if row.ratio_low is None else f"{row.ratio_low:.2f} .. {row.ratio_high:.2f}",
        )
        for row in report.rows
    ]
    out.table(columns, rows, right=columns, markdown=True)
    own = next(row.type for row in report.rows if row.ratio is None)
    sure = sorted({f"{row.confidence:.0%}" for row in report.rows if row.confidence})
    out.wrapped(
        f"speed-up: {own}'s speed divided by that of the row; the median of alternating rounds"
        + (f", and an interval that has the true median with {' or '.join(sure)} confidence" if sure else "")
    )
    twins = {row.type for row in report.rows} - {own, *(peer.type for peer in report.peers)}
    out.wrapped(
        f"{report.tier} kernels; each file in its own process and read into memory"
        + (", the twins' head on llama.cpp's own kernels" if twins else "")
    )
    for peer in report.peers:
        said = ", ".join(part for part in (peer.model, peer.build) if part)
        out.wrapped(f"{peer.type}: {peer.command}{f' ({said})' if said else ''}, a process per round")
    show_load(out, report.load, [(row.threads, row.fair_share) for row in report.rows])
    if report.tier_forced:
        out.wrapped(
            f"BITEXPORT_TIER limits {own} to {report.tier}; its twins use everything that this CPU has."
        )
    disturbed = {(row.test, row.threads): row for row in report.rows if row.disturbed_rounds}
    for row in disturbed.values():
        test = f"{row.test}, {threads_text(row.threads)}"
        if row.disturbed:
            out.wrapped(f"{test}: the machine's limits moved in every round; measure again")
        else:
            out.wrapped(
                f"{test}: {counted(row.disturbed_rounds, 'round')} discarded, because the machine's limits "
                f"moved; {row.rounds} left"
            )
    for file in report.kept:
        out.line(f"kept {file}")
