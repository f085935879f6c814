"""``bitexport doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitexport.cli import options
from bitexport.cli.hub import OR_NAME, Revision, local_path, path_or_name
from bitexport.cli.interrupt import terminable
from bitexport.cli.output import Output, counted
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.doctor import DoctorReport
    from bitexport.doctor.examination import Norm
    from bitexport.environment import EnvironmentReport

_TOKEN_CHARS = 10
_PROMPT_CHARS = 40
_STATUS_WIDTH = 9


def doctor(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            parser=path_or_name,
            metavar="[CKPT]",
            help=f"Checkpoint folder (config.json, *.safetensors), {OR_NAME}.",
            show_default=False,
        ),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Argument(
            parser=path_or_name,
            metavar="[FILE.gguf]",
            help="GGUF file made from it; if omitted, a temporary one is made.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="Show the likely next tokens after this.", show_default=False
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="A text that the model should be able to predict; if omitted, English prose and Python code "
            "are tried, and the one that it predicts better counts.",
            show_default=False,
        ),
    ] = None,
    env: Annotated[
        bool, typer.Option("--env", help="Examine this machine instead of a model: what it has and lacks.")
    ] = False,
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="Threads for C++; 0: one per processor.")
    ] = 0,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find out why a model prints garbage.

    Runs it in float, with quantized weights, with quantized weights and
    activations, and in C++; then gives one verdict, the evidence for it, and
    what to do. Exit code 3 unless the model is healthy.

    With --env, examines the machine instead: compiler, CPU, memory, disk,
    torch and package versions, and what each of them means for you. Exit code
    3 if one of them is a problem.
    """
    if env:
        if any(given is not None for given in (checkpoint, gguf, prompt, text, revision)):
            raise UsageError(
                "--env examines the machine; it takes no checkpoint, file, revision, prompt or text"
            )
        _environment(Output(json=json, quiet=quiet))
        return
    if checkpoint is None:
        raise UsageError("no checkpoint given; name its folder, or give --env to examine this machine")
    document = options.read_text(text)
    out = Output(json=json, quiet=quiet)
    checkpoint = local_path(out, checkpoint, "checkpoint", revision)
    gguf = local_path(out, gguf, "gguf")
    from bitexport.doctor import doctor as run

    with terminable(), out.progress("doctor") as progress:
        report = run(checkpoint, gguf, prompt=prompt, text=document, threads=threads, progress=progress)
    out.result(report.to_json(), human=lambda: _show(out, report))
    if not report.healthy:
        raise out.failed(f"{report.verdict.name}: {report.verdict.sentence}")


def _environment(out: Output) -> None:
    from bitexport.environment import environment

    report = environment()
    out.result(report.to_json(), human=lambda: _show_environment(out, report))
    if problems := report.with_status("problem"):
        raise out.failed(f"this machine lacks something that bitexport needs: {', '.join(problems)}")


def _show_environment(out: Output, report: EnvironmentReport) -> None:
    margin = " " * _STATUS_WIDTH
    for check in report.checks:
        out.wrapped(f"{check.status:<{_STATUS_WIDTH}}{check.name}: {check.value}", indent=_STATUS_WIDTH)
        out.wrapped(margin + check.meaning, indent=_STATUS_WIDTH)
        if check.advice:
            out.wrapped(f"{margin}What to do: {check.advice}", indent=_STATUS_WIDTH)
    ok, warnings, problems = (len(report.with_status(status)) for status in ("ok", "warning", "problem"))
    out.line(f"{ok} ok, {counted(warnings, 'warning')}, {counted(problems, 'problem')}")


def _show(out: Output, report: DoctorReport) -> None:
    _show_stages(out, report)
    if report.facts.examination is not None:
        _show_norms(out, report.facts.examination.norms)
    verdict = report.verdict
    out.wrapped(f"{verdict.name}: {verdict.sentence}")
    for item in verdict.evidence:
        out.wrapped(f"- {item}", indent=2)
    out.wrapped(f"What to do: {verdict.advice}; see {verdict.see}")


def _show_stages(out: Output, report: DoctorReport) -> None:
    from bitexport.doctor.stages import STAGES

    sample = report.sample
    if sample is not None:
        stages = report.facts.stages
        prompt = (
            sample.prompt if len(sample.prompt) <= _PROMPT_CHARS else "…" + sample.prompt[-_PROMPT_CHARS:]
        )
        out.wrapped(
            f"Judged on {sample.tokens:,} tokens of {sample.kind}; entropy, P(end of text) and the next "
            f"tokens are those after {prompt!r}:"
        )
        rows = []
        for name in STAGES:
            if name in stages:
                stage = stages[name]
                kind = sample.kind
                end = stage.end[kind]
                rows.append(
                    (
                        name,
                        _number(stage.perplexity(kind)),
                        f"{report.facts.skill(name):.2f}",
                        f"{stage.entropies[kind]:.2f}",
                        "" if end is None else f"{end:.2g}",
                    )
                )
        columns = ("stage", "perplexity", "skill", "entropy", "P(end of text)")
        out.table(columns, rows, right=columns[1:])
        present = [name for name in STAGES if name in stages]
        ranks = zip(*(stages[name].top[sample.kind] for name in present), strict=True)
        tops = [
            (number, *(f"{_short(token.text)} {token.probability:.2f}" for token in rank))
            for number, rank in enumerate(ranks, start=1)
        ]
        out.table(("next", *present), tops)
    for name, reason in report.skipped.items():
        out.wrapped(f"{name}: not run, {reason}")
    if report.skipped:
        out.line()


def _show_norms(out: Output, norms: list[Norm]) -> None:
    """One row per kind of tensor: the layer that quantization changes most."""
    kinds: dict[str, list[Norm]] = {}
    for norm in norms:
        kinds.setdefault(norm.kind, []).append(norm)
    rows: list[list[object]] = []
    for kind, found in kinds.items():
        worst = min(found, key=lambda norm: norm.ratio if norm.ratio is not None else norm.after)
        row: list[object] = [kind, len(found), worst.layer, f"{worst.after:.2f}"]
        if worst.ratio is not None and worst.before is not None:
            row[3:] = [f"{worst.before:.2f}", f"{worst.after:.2f}", f"{worst.ratio:.2f}"]
        rows.append(row)
    quantized = any(norm.ratio is not None for norm in norms)
    columns = ["tensor", "layers", "layer", "norm"]
    if quantized:
        columns[3:] = ["before", "after", "kept"]
    which = "of which quantization keeps least" if quantized else "with the smallest"
    out.wrapped(f"Frobenius norms of the ternary tensors; for each kind, the layer {which}:")
    out.table(columns, rows, right=columns[1:])


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def _short(text: str) -> str:
    """A token as a Python string literal, shortened."""
    shown = repr(text)
    return shown if len(shown) <= _TOKEN_CHARS else shown[: _TOKEN_CHARS - 2] + "…" + shown[-1]
