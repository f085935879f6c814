"""``bitexport bench``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitexport.cli import options
from bitexport.cli.bench_blocks import run_blocks
from bitexport.cli.help import Command
from bitexport.cli.hub import Revision, local_path
from bitexport.cli.output import Output, counted, format_bytes
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.bench import BenchReport, BenchRow, CompareReport

ALL_TWINS = "all"


def bench(
    gguf: options.Gguf,
    threads: Annotated[
        str, typer.Option("--threads", "-t", metavar="N,...", help="Thread counts; empty: one per core.")
    ] = "",
    prompt_tokens: Annotated[
        str,
        typer.Option("--prompt-tokens", metavar="N,...", help="Tokens per prefill test (pp); 0: none."),
    ] = "512",
    gen_tokens: Annotated[
        str, typer.Option("--gen-tokens", "-n", metavar="N,...", help="Tokens per decode test (tg); 0: none.")
    ] = "128",
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            "-b",
            metavar="N,...",
            help="Sequences decoded together, like llama-batched-bench's -npl; for example 1,2,4,8,16.",
        ),
    ] = "1",
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", min=1, help="Timed runs of each test.")
    ] = 5,
    compare: Annotated[
        str,
        typer.Option(
            "--compare",
            metavar="[TYPE,...]",
            help="Alternate with twins of the file in other types: some of f16,tq2_0,q4_0; for a file that "
            "is not i2_s also llama.cpp, the same file on llama.cpp's own kernels.",
        ),
    ] = "",
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Folder to keep the twins of --compare in, for reuse."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Plot tokens/s against threads, with the limits, as .png or .svg.",
            show_default=False,
        ),
    ] = None,
    decode: Annotated[
        str,
        typer.Option(
            "--decode",
            metavar="block",
            help="Alternate decoding in blocks with decoding token by token, on --prompts.",
            show_default=False,
        ),
    ] = "",
    rules: Annotated[
        str,
        typer.Option(
            "--rules", metavar="RULE[:THRESHOLD],...", help="Rules of --decode block, as for `bitexport run`."
        ),
    ] = "greedy,confidence,adaptive",
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompts of --decode block, one per line; built-in ones without it.",
            show_default=False,
        ),
    ] = None,
    workers: options.Workers = "",
    layers: options.Layers = "",
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure tokens per second, and how close they come to the limits of memory and multiply-add units."""
    counts = _numbers("--threads", threads)
    prefills = _numbers("--prompt-tokens", prompt_tokens)
    generated = _numbers("--gen-tokens", gen_tokens)
    batches = _numbers("--batch", batch)
    out = Output(json=json, quiet=quiet)
    if decode:
        if decode != "block":
            raise UsageError(f"--decode is {decode!r}; expected block")
        if compare or workers or plot is not None or batches != [1]:
            raise UsageError("--decode block is alone; leave out --compare, --batch, --plot and --workers")
        gguf = local_path(out, gguf, "gguf", revision)
        tokens = max(generated, default=0)
        run_blocks(out, gguf, prompts=prompts, rules=rules, threads=counts, tokens=tokens, rounds=repetitions)
        return
    if prompts is not None:
        raise UsageError("--prompts is for --decode block; add it, or leave out --prompts")
    if compare:
        if batches != [1]:
            raise UsageError("--batch and --compare do not go together; leave one of them out")
        if workers:
            raise UsageError("--compare measures on this machine alone; leave out --workers or --compare")
        if plot is not None:
            raise UsageError("--plot draws limits, but --compare has none; leave one of them out")
        gguf = local_path(out, gguf, "gguf", revision)
        _compare(out, gguf, compare, counts, prefills, generated, repetitions, keep)
        return
    if keep is not None:
        raise UsageError("--keep is for the twins of --compare; add --compare, or leave out --keep")
    if plot is not None and workers:
        raise UsageError("--plot draws this machine's limits; leave out --workers or --plot")
    if plot is not None:
        from bitexport.system.picture import check_picture

        check_picture(plot)  # fail now rather than after minutes of measuring
    gguf = local_path(out, gguf, "gguf", revision)
    from bitexport.bench import bench as run

    with out.progress("bench") as progress:
        report = run(
            gguf,
            threads=counts,
            prompt_tokens=prefills,
            generated_tokens=generated,
            batches=batches,
            repetitions=repetitions,
            workers=workers,
            layers=options.layers(layers),
            progress=progress,
        )
    if plot is not None:
        from bitexport.bench.plot import plot as draw

        draw(report, plot)
    out.result(report.to_json(), human=lambda: _show(out, report))


class BenchCommand(Command):
    """Lets ``--compare`` without a value mean all twins."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Fill in the value, then parse as usual."""
        following = [*args[1:], "-"]
        filled = [
            f"--compare={ALL_TWINS}" if arg == "--compare" and not _is_type_list(after) else arg
            for arg, after in zip(args, following, strict=True)
        ]
        return super().parse_args(ctx, filled)


def _is_type_list(argument: str) -> bool:
    return re.fullmatch(r"(\w+|llama\.cpp)(,(\w+|llama\.cpp))*", argument) is not None


def _compare(
    out: Output,
    gguf: Path,
    types: str,
    counts: list[int],
    prompts: list[int],
    generated: list[int],
    rounds: int,
    keep: Path | None,
) -> None:
    from bitexport.bench import compare as run

    with out.progress("bench") as progress:
        report = run(
            gguf,
            types=[name.strip() for name in types.lower().split(",") if name.strip() not in ("", ALL_TWINS)],
            threads=counts,
            prompt_tokens=prompts,
            generated_tokens=generated,
            rounds=rounds,
            keep=keep,
            progress=progress,
        )
    out.result(report.to_json(), human=lambda: _show_comparison(out, report))


def _show_comparison(out: Output, report: CompareReport) -> None:
    out.wrapped(_model(report.path, report.model))
    columns = ["test", "threads", "type", "size", "t/s", "speed-up", "range"]
    rows = [
        (
            row.test,
            row.threads,
            row.type,
            format_bytes(report.bytes[row.type]),
            f"{row.tokens_per_second:.2f}",
            "" if row.ratio is None else f"{row.ratio:.2f}x",
            "" if row.ratio_min is None else f"{row.ratio_min:.2f} .. {row.ratio_max:.2f}",
        )
        for row in report.rows
    ]
    out.table(columns, rows, right=columns, markdown=True)
    own = next(row.type for row in report.rows if row.ratio is None)
    out.wrapped(f"speed-up: {own}'s speed divided by that type's; median and range over alternating rounds")
    out.wrapped(
        f"{report.tier} kernels; each file in its own process and read into memory, the twins' head on "
        "llama.cpp's own kernels"
    )
    if report.tier_forced:
        out.wrapped(
            f"BITEXPORT_TIER limits {own} to {report.tier}; its twins use everything that this CPU has."
        )
    disturbed = {(row.test, row.threads): row for row in report.rows if row.disturbed_rounds}
    for row in disturbed.values():
        test = f"{row.test}, {_threads(row.threads)}"
        if row.disturbed:
            out.wrapped(f"{test}: the machine's limits moved in every round; measure again")
        else:
            out.wrapped(
                f"{test}: {counted(row.disturbed_rounds, 'round')} discarded, because the machine's limits "
                f"moved; {row.rounds} left"
            )
    for file in report.kept:
        out.line(f"kept {file}")


def _numbers(option: str, text: str) -> list[int]:
    """``"1,2"`` -> ``[1, 2]``; zeros, which mean "none", are dropped."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [-1]
    if any(number < 0 for number in numbers):
        raise UsageError(f"{option} is {text!r}; expected whole numbers separated by commas, such as 1,2")
    return [number for number in numbers if number]


def _model(path: str, description: str) -> str:
    """The file's name and llama.cpp's description, which writes ?B for sizes that it does not know."""
    return f"{Path(path).name}, {description.replace(' ?B', '')}"


def _show(out: Output, report: BenchReport) -> None:
    out.wrapped(
        f"{_model(report.path, report.model)}: {_short_count(report.parameters)} parameters, "
        f"{format_bytes(report.weight_bytes)}, {report.tier} kernels"
    )
    columns: dict[str, Callable[[BenchRow], object]] = {
        "threads": lambda row: row.threads,
        "B": lambda row: row.batch,
        "test": lambda row: f"{row.test}*" if row.disturbed else row.test,
        "t/s": lambda row: f"{row.tokens_per_second:.2f} ± {row.stddev:.2f}",
        "% memory": lambda row: _percent(row.percent_of_bandwidth),
        "% multiply-add": lambda row: _percent(row.percent_of_multiply_adds),
    }
    if all(row.batch == 1 for row in report.rows):
        del columns["B"]
    if report.machines:
        columns = {name: cell for name, cell in columns.items() if not name.startswith("%")}
        columns["machines"] = lambda _: len(report.machines)
    rows = [[cell(row) for cell in columns.values()] for row in report.rows]
    out.table(list(columns), rows, right=list(columns), markdown=True)
    if report.machines:
        _show_machines(out, report)
    else:
        out.wrapped(
            "100% is the machine's speed of reading memory and of multiply-adds, measured with each test:"
        )
        for row in report.rows:
            out.wrapped(f"- {row.test}{_in_batch(row)}, {_threads(row.threads)}: {_limits(row)}", indent=2)
    out.wrapped(
        f"loaded in {report.load_seconds:.2f} s; {format_bytes(report.rss_bytes)} resident, "
        f"{format_bytes(report.rss_before_bytes)} before loading"
    )
    out.wrapped(
        f"each token reads {format_bytes(report.bytes_per_token)} of weights "
        f"({format_bytes(report.file_bytes_per_token)} in the file) and takes "
        f"{_short_count(report.multiply_adds_per_token)} multiply-adds in the layers' matrices"
    )
    if report.fits_caches and not report.machines:
        out.wrapped("The weights fit this CPU's caches, so memory does not limit this model.")


def _show_machines(out: Output, report: BenchReport) -> None:
    """The threads in the table are this machine's; a worker keeps those that it was started with."""
    out.wrapped(f"over {len(report.machines)} machines, one after the other for each token:")
    for machine in report.machines:
        threads = "" if machine is report.machines[0] else f", {_threads(machine.threads)}"
        out.wrapped(
            f"- {machine.name}: {counted(machine.layers, 'layer')}{threads}, {machine.tier} kernels", indent=2
        )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}%"


def _threads(count: int) -> str:
    return counted(count, "thread")


def _in_batch(row: BenchRow) -> str:
    return "" if row.batch == 1 else f" x {row.batch}"


def _limits(row: BenchRow) -> str:
    limits = []
    if row.memory_read_gbps is not None:
        limits.append(f"memory read at {row.memory_read_gbps:.1f} GB/s")
    if row.multiply_add_gps is not None:
        limits.append(f"{row.multiply_add_gps:.0f} G multiply-adds/s")
    shown = ", ".join(limits) or "these kernels have no multiply-add instruction to compare with"
    return f"{shown}; {_disturbance(row)}" if row.disturbed else shown


def _disturbance(row: BenchRow) -> str:
    return f"* disturbed: limits moved by {100 * row.limit_change:.0f}%"


def _short_count(count: int) -> str:
    """``2412820480`` -> ``"2.41 B"``, as llama-bench writes it."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
