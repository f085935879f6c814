"""``bitexport parity``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitexport.cli import options
from bitexport.cli.hub import Revision, local_path
from bitexport.cli.output import Output, counted, excerpt
from bitexport.cli.parity_layers import show_layers
from bitexport.cli.parity_tokenizer import show_tokenizer
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.metrics.logits import Agreement
    from bitexport.parity.report import ParityReport, PromptResult

# Characters of a prompt, so that the table fits 80 columns.
_EXCERPT = 13


def parity(
    checkpoint: options.Checkpoint,
    gguf: options.Gguf,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="A prompt; may be repeated.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help='Prompts, one per line; in a .jsonl file each line is "TEXT" or {"prompt": "TEXT"}.',
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens", min=0, help="Continue each prompt by this many greedy tokens on both sides."
        ),
    ] = 8,
    min_cosine: Annotated[
        float, typer.Option("--min-cosine", help="Exit 3 if the cosine of any position is below this.")
    ] = 0.9999,
    align: Annotated[
        bool,
        typer.Option(
            "--align/--plain",
            help="Judge with PyTorch using the file's embeddings and rounding as C++ did where a value is on "
            "the edge between two steps, so that only mistakes count; or judge both sides unmodified.",
        ),
    ] = True,
    noise_floor: Annotated[
        bool,
        typer.Option(
            "--noise-floor", help="Also compare PyTorch with itself under the smallest disturbance."
        ),
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", metavar="FILE", help="Also compare the perplexity of this text.", show_default=False
        ),
    ] = None,
    tokenizer_only: Annotated[
        bool,
        typer.Option(
            "--tokenizer-only",
            help="Only compare the tokenization of hard strings and the prompts; no weights are read.",
        ),
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Compare every step of every block and name the first that diverges; exit 3 if one does.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Plot the difference of every step against depth; implies --layers.",
            show_default=False,
        ),
    ] = None,
    report_page: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Write a report of everything as one HTML page; implies --layers.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="Threads for C++; 0: one per core.")
    ] = 0,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare C++ with PyTorch, logit by logit.

    Runs prompts (a built-in set unless given) through transformers in float32 and through libllama, and
    compares the logits at every position. For an embedding model, it compares the vectors of all tokens and
    the pooled ones; with --layers, --plot, --report, --noise-floor or --text, the logits of its decoder.
    """
    chosen = _prompts(prompt, prompts)
    if tokenizer_only and (layers or noise_floor or text or plot or report_page):
        raise UsageError(
            "--tokenizer-only runs no model; leave out --layers, --plot, --report, --noise-floor and --text"
        )
    out = Output(json=json, quiet=quiet)
    checkpoint = local_path(out, checkpoint, "checkpoint", revision)
    gguf = local_path(out, gguf, "gguf")
    if tokenizer_only:
        _tokenizer_only(checkpoint, gguf, chosen or [], out)
        return
    if not (layers or noise_floor or text or plot or report_page):
        from bitexport.parity.embedding import is_embedding_model

        if is_embedding_model(gguf):
            from bitexport.cli.parity_embedding import compare_embeddings

            compare_embeddings(out, checkpoint, gguf, chosen, min_cosine, align, threads)
            return
    _check_pictures(plot, report_page)
    document = options.read_text(text)
    from bitexport.parity import parity as run
    from bitexport.parity.report import verdict

    with out.progress("parity") as progress:
        report = run(
            checkpoint,
            gguf,
            chosen,
            tokens=tokens,
            min_cosine=min_cosine,
            align=align,
            measure_noise_floor=noise_floor,
            text=document,
            layers=layers or plot is not None or report_page is not None,
            details=report_page is not None,
            threads=threads,
            progress=progress,
        )
    _write_pictures(report, checkpoint, gguf, plot, report_page)
    out.result(report.to_json(), human=lambda: _show(out, report))
    if not report.passed:
        raise out.failed(verdict(report))


def _check_pictures(plot: Path | None, page: Path | None) -> None:
    """Fail now rather than at the end of a long run."""
    from bitexport.system.files import check_folder
    from bitexport.system.picture import check_picture, pyplot

    if plot is not None:
        check_picture(plot)
    if page is not None:
        check_folder(page)
        pyplot()  # a clear message when it is missing


def _write_pictures(
    report: ParityReport, checkpoint: Path, gguf: Path, plot: Path | None, page: Path | None
) -> None:
    from bitexport.system.files import write_atomically

    if plot is not None and report.layers is not None:
        from bitexport.parity.figures import depth
        from bitexport.system.picture import kind_of

        write_atomically(plot, depth(report.layers, kind_of(plot)))
    if page is not None:
        from bitexport.parity.page import page as render

        write_atomically(page, render(report, checkpoint, gguf).encode("utf-8", "backslashreplace"))


def _tokenizer_only(checkpoint: Path, gguf: Path, prompts: list[str], out: Output) -> None:
    from bitexport.parity.tokenizer import tokenizer_parity

    with out.progress("tokenizer") as progress:
        report = tokenizer_parity(checkpoint, gguf, prompts, progress=progress)
    out.result(report.to_json(), human=lambda: show_tokenizer(out, report))
    if not report.passed:
        raise out.failed(report.describe())


def _prompts(prompt: list[str] | None, prompts: Path | None) -> list[str] | None:
    from bitexport.text.prompts import read_prompts

    if prompt is None and prompts is None:
        return None
    return (prompt or []) + (read_prompts(prompts) if prompts else [])


def _show(out: Output, report: ParityReport) -> None:
    from bitexport.parity.report import verdict

    columns = ["prompt", "tokens", "cosine min", "top-1", "KL", "max diff"]
    if report.greedy_tokens:
        columns.append("greedy")
    rows = [_row(number, result, report) for number, result in enumerate(report.prompts, start=1)]
    out.table(columns, rows, title="Each prompt, plain (both sides unmodified):", right=columns[1:])
    for line in _divergences(report):
        out.wrapped(line, indent=2)
    _show_agreements(out, report)
    if report.activations is not None:
        out.wrapped(report.activations.describe(), indent=2)
    if report.aligned is not None:
        out.wrapped(f"aligned: {report.aligned.describe()}", indent=2)
    if report.perplexity is not None:
        text = report.perplexity
        out.wrapped(
            f"perplexity of {text.tokens:,} tokens: Python {text.python:.4f}, C++ {text.cpp:.4f}, "
            f"a difference of {text.relative_difference:.4%}",
            indent=2,
        )
    if report.greedy_match is not None:
        identical = round(report.greedy_match * len(report.prompts))
        out.wrapped(
            f"greedy: {identical} of {counted(len(report.prompts), 'continuation')} of "
            f"{counted(report.greedy_tokens, 'token')} {'is' if identical == 1 else 'are'} identical"
            f"{', rounding aligned' if report.judged_aligned else ''}",
            indent=2,
        )
    if report.layers is not None:
        show_layers(out, report.layers)
    if report.blocks is not None:
        out.wrapped(f"blocks: {report.blocks.describe()}", indent=2)
    out.wrapped(f"{'PASS' if report.passed else 'FAIL'} ({report.tier} kernels): {verdict(report)}", indent=2)


def _row(number: int, result: PromptResult, report: ParityReport) -> list[str]:
    agreement = result.agreement
    row = [
        f"{number} {excerpt(result.prompt, _EXCERPT)}",
        str(result.tokens),
        f"{agreement.cosine_min:.8f}",
        f"{agreement.top1_agreement:.1%}",
        _small(agreement.kl_mean),
        f"{agreement.max_abs_diff:.3g}",
    ]
    if result.continuation is not None:
        row.append(f"{len(result.continuation.tokens)}/{report.greedy_tokens}")
    return row


def _divergences(report: ParityReport) -> list[str]:
    lines = []
    for number, result in enumerate(report.prompts, start=1):
        found = result.continuation.divergence if result.continuation else None
        if found is not None:
            lines.append(
                f"prompt {number} diverges at greedy token {found.step}: Python chooses {found.python_token} "
                f"({found.python_gap:.2g} ahead), C++ chooses {found.cpp_token} ({found.cpp_gap:.2g} ahead): "
                + ("a near-tie" if found.near_tie else "not a tie, so this is a real difference")
            )
    return lines


def _show_agreements(out: Output, report: ParityReport) -> None:
    """All positions in one table, a column for each comparison."""
    found = {
        "plain": report.plain,
        "aligned": report.aligned.agreement if report.aligned else None,
        "noise floor": report.noise_floor,
    }
    columns = {name: agreement for name, agreement in found.items() if agreement is not None}
    numbers: dict[str, Callable[[Agreement], str]] = {
        "positions": lambda a: f"{a.positions:,}",
        "cosine min": lambda a: f"{a.cosine_min:.8f}",
        "cosine mean": lambda a: f"{a.cosine_mean:.8f}",
        "same top-1 token": lambda a: f"{a.top1_agreement:.2%}",
        "mean KL divergence": lambda a: _small(a.kl_mean),
        "max logit difference": lambda a: f"{a.max_abs_diff:.3g}",
    }
    rows = [[name, *map(show, columns.values())] for name, show in numbers.items()]
    out.table(["", *columns], rows, title="All prompts:", right=list(columns))
    if report.noise_floor is not None:
        out.wrapped("noise floor: PyTorch against itself, embeddings off by one float32 rounding", indent=2)


def _small(value: float) -> str:
    """A divergence; 0 if it is within float64's own rounding."""
    return f"{value:.1e}" if abs(value) > 1e-14 else "0"
