"""``bitexport bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitexport.cli import options
from bitexport.cli.output import Output, format_bytes
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.bench import BenchReport


def bench(
    gguf: options.Gguf,
    threads: Annotated[
        str, typer.Option("--threads", "-t", metavar="N,...", help="Thread counts; empty: one a processor.")
    ] = "",
    prompt_tokens: Annotated[
        str, typer.Option("--prompt-tokens", "-p", metavar="N,...", help="Sizes of prefill (pp); 0: none.")
    ] = "512",
    gen_tokens: Annotated[
        str, typer.Option("--gen-tokens", "-n", metavar="N,...", help="Sizes of decode (tg); 0: none.")
    ] = "128",
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", min=1, help="Timed runs of each test.")
    ] = 5,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure tokens per second, and how near that is to the memory's speed."""
    counts = _numbers("--threads", threads)
    prompts = _numbers("--prompt-tokens", prompt_tokens)
    generated = _numbers("--gen-tokens", gen_tokens)
    from bitexport.bench import bench as run

    out = Output(json=json, quiet=quiet)
    with out.progress("bench") as progress:
        report = run(
            gguf,
            threads=counts,
            prompt_tokens=prompts,
            generated_tokens=generated,
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
    columns = ("model", "size", "params", "threads", "test", "t/s", "% of memory speed")
    rows = [
        (
            report.model,
            format_bytes(report.weight_bytes),
            _short_count(report.parameters),
            row.threads,
            row.test,
            f"{row.tokens_per_second:.2f} ± {row.stddev:.2f}",
            "" if row.percent_of_bandwidth is None else f"{row.percent_of_bandwidth:.0f}%",
        )
        for row in report.rows
    ]
    out.table(columns, rows, right=columns[1:], markdown=True)
    out.line(
        f"{report.tier} kernels; loaded in {report.load_seconds:.2f} s; "
        f"{format_bytes(report.rss_bytes)} resident, {format_bytes(report.rss_before_bytes)} before loading"
    )
    for row in report.rows:
        if row.memory_read_gbps is not None:
            out.line(
                f"memory read by {row.threads} threads beside {row.test}: {row.memory_read_gbps:.1f} GB/s; "
                f"a token reads {format_bytes(report.bytes_per_token)}"
            )
    if report.fits_caches:
        out.line("The weights fit this CPU's caches, so that memory does not limit this model.")


def _short_count(count: int) -> str:
    """``2412820480`` -> ``"2.41 B"``, as llama-bench writes it."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
