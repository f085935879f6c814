"""``bitexport bench``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitexport.cli import options
from bitexport.cli.bench_modes import RULES, ModeOptions
from bitexport.cli.bench_text import model_name, show_load, threads_text
from bitexport.cli.help import Command
from bitexport.cli.hub import Revision, local_path
from bitexport.cli.output import Output, counted, format_bytes
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.bench import BenchReport, BenchRow

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
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="COMMAND",
            help="Alternate with another program that has llama-bench's options and JSON, for example "
            '"path/llama-bench -m other.gguf"; may be repeated.',
            show_default=False,
        ),
    ] = None,
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
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            metavar="lookup|FILE",
            help="Measure decoding with drafts, as in run, beside plain decoding.",
            show_default=False,
        ),
    ] = None,
    draft_tokens: options.DraftTokens = 15,
    draft_text: Annotated[
        Path | None,
        typer.Option(
            "--draft-text",
            metavar="FILE",
            help="With --draft: the text to decode. Default: one that repeats itself, and one that does not.",
            show_default=False,
        ),
    ] = None,
    load: Annotated[
        int, typer.Option("--load", min=0, metavar="N", help="Busy processes beside the measurement.")
    ] = 0,
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
    ] = RULES,
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
    given = ModeOptions(
        compare=compare,
        against=against or (),
        draft=draft,
        draft_text=draft_text,
        decode=decode,
        rules=rules,
        prompts=prompts,
        keep=keep,
        plot=plot,
        load=load,
        workers=workers,
        layers=layers,
        batches=batches,
        generated=generated,
    )
    given.check()
    gguf = local_path(out, gguf, "gguf", revision)
    tests = {"threads": counts, "prompt_tokens": prefills, "generated_tokens": generated, "load": load}
    if given.mode == "compare":
        from bitexport.cli.bench_compare import compare_files

        types = [name for name in map(str.strip, compare.lower().split(",")) if name]
        compare_files(out, gguf, types=types, against=given.against, rounds=repetitions, keep=keep, **tests)
    elif given.mode == "draft":
        from bitexport.cli.bench_drafts import measure

        drafts = options.draft(out, draft)
        measure(out, gguf, drafts, draft_tokens, draft_text, generated[0], counts, repetitions)
    elif given.mode == "block":
        from bitexport.cli.bench_blocks import run_blocks

        length = generated[0]
        run_blocks(out, gguf, prompts=prompts, rules=rules, threads=counts, tokens=length, rounds=repetitions)
    else:
        others = {"workers": workers, "layers": options.layers(layers)}
        _measure(out, gguf, plot, batches=batches, repetitions=repetitions, **others, **tests)


def _measure(out: Output, gguf: Path, plot: Path | None, **arguments: Any) -> None:
    from bitexport.bench import bench as run

    with out.progress("bench") as progress:
        report = run(gguf, **arguments, progress=progress)
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


def _numbers(option: str, text: str) -> list[int]:
    """``"1,2"`` -> ``[1, 2]``; zeros, which mean "none", are dropped."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [-1]
    if any(number < 0 for number in numbers):
        raise UsageError(f"{option} is {text!r}; expected whole numbers separated by commas, such as 1,2")
    return [number for number in numbers if number]


def _show(out: Output, report: BenchReport) -> None:
    out.wrapped(
        f"{model_name(report.path, report.model)}: {_short_count(report.parameters)} parameters, "
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
            test = f"{row.test}{_in_batch(row)}, {threads_text(row.threads)}"
            out.wrapped(f"- {test}: {_limits(row)}", indent=2)
    show_load(out, report.load, [(row.threads, row.fair_share) for row in report.rows])
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
        threads = "" if machine is report.machines[0] else f", {threads_text(machine.threads)}"
        out.wrapped(
            f"- {machine.name}: {counted(machine.layers, 'layer')}{threads}, {machine.tier} kernels", indent=2
        )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}%"


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
