"""``bitexport bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitexport.cli import options
from bitexport.cli.output import Output, format_bytes
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.bench import BenchReport, BenchRow


def bench(
    gguf: options.Gguf,
    threads: Annotated[
        str, typer.Option("--threads", "-t", metavar="N,...", help="Thread counts; empty: one a core.")
    ] = "",
    prompt_tokens: Annotated[
        str, typer.Option("--prompt-tokens", "-p", metavar="N,...", help="Sizes of prefill (pp); 0: none.")
    ] = "512",
    gen_tokens: Annotated[
        str, typer.Option("--gen-tokens", "-n", metavar="N,...", help="Sizes of decode (tg); 0: none.")
    ] = "128",
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            "-b",
            metavar="N,...",
            help="Sequences decoded together, as -npl of llama-batched-bench: 1,2,4,8,16, say.",
        ),
    ] = "1",
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", min=1, help="Timed runs of each test.")
    ] = 5,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure tokens per second, and how near that is to what memory and multiply-add units allow."""
    counts = _numbers("--threads", threads)
    prompts = _numbers("--prompt-tokens", prompt_tokens)
    generated = _numbers("--gen-tokens", gen_tokens)
    batches = _numbers("--batch", batch)
    from bitexport.bench import bench as run

    out = Output(json=json, quiet=quiet)
    with out.progress("bench") as progress:
        report = run(
            gguf,
            threads=counts,
            prompt_tokens=prompts,
            generated_tokens=generated,
            batches=batches,
            repetitions=repetitions,
            progress=progress,
        )
    out.result(report.to_json(), human=lambda: _show(out, report))


def _numbers(option: str, text: str) -> list[int]:
    """``"1,2"`` -> ``[1, 2]``; zeros are dropped, as "none of these"."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [-1]
    if any(number < 0 for number in numbers):
        raise UsageError(f"{option} is {text!r}; expected whole numbers with commas between, such as 1,2")
    return [number for number in numbers if number]


def _show(out: Output, report: BenchReport) -> None:
    columns = {
        "model": lambda _: report.model,
        "size": lambda _: format_bytes(report.weight_bytes),
        "params": lambda _: _short_count(report.parameters),
        "threads": lambda row: row.threads,
        "B": lambda row: row.batch,
        "test": lambda row: row.test,
        "t/s": lambda row: f"{row.tokens_per_second:.2f} ± {row.stddev:.2f}",
        "% of memory speed": lambda row: _percent(row.percent_of_bandwidth),
        "% of multiply-add peak": lambda row: _percent(row.percent_of_multiply_adds),
        "note": _note,
    }
    if all(row.batch == 1 for row in report.rows):
        del columns["B"]
    if not any(row.disturbed for row in report.rows):
        del columns["note"]
    rows = [[cell(row) for cell in columns.values()] for row in report.rows]
    out.table(list(columns), rows, right=list(columns)[1:], markdown=True)
    out.line(
        f"{report.tier} kernels; loaded in {report.load_seconds:.2f} s; "
        f"{format_bytes(report.rss_bytes)} resident, {format_bytes(report.rss_before_bytes)} before loading"
    )
    out.line(
        f"a token reads {format_bytes(report.bytes_per_token)} of weights "
        f"({format_bytes(report.file_bytes_per_token)} in the file) and takes "
        f"{_short_count(report.multiply_adds_per_token)} multiply-adds in the layers' matrices"
    )
    for row in report.rows:
        out.line(f"beside {row.test}{_in_batch(row)}, {row.threads} threads: {_limits(row)}")
    if report.fits_caches:
        out.line("The weights fit this CPU's caches, so that memory does not limit this model.")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}%"


def _note(row: BenchRow) -> str:
    return f"disturbed: limits moved by {100 * row.limit_change:.0f}%" if row.disturbed else ""


def _in_batch(row: BenchRow) -> str:
    return "" if row.batch == 1 else f" x {row.batch}"


def _limits(row: BenchRow) -> str:
    parts = []
    if row.memory_read_gbps is not None:
        parts.append(f"memory read at {row.memory_read_gbps:.1f} GB/s")
    if row.multiply_add_gps is not None:
        parts.append(f"{row.multiply_add_gps:.0f} G multiply-adds/s")
    return ", ".join(parts) or "these kernels have no multiply-add instruction to compare with"


def _short_count(count: int) -> str:
    """``2412820480`` -> ``"2.41 B"``, as llama-bench writes it."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
