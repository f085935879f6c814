"""``bitexport inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitexport.cli import options
from bitexport.cli.hub import OR_FILE_NAME, Revision, local_path, path_or_name
from bitexport.cli.output import Output, counted, format_bytes

if TYPE_CHECKING:
    from bitexport.inspect import InspectReport

MAX_TEXT = 72


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            parser=path_or_name,
            metavar="FILE_OR_DIR",
            help=f"GGUF file, checkpoint folder, {OR_FILE_NAME}.",
            show_default=False,
        ),
    ],
    health: Annotated[
        bool,
        typer.Option("--health", help="Read every tensor, and show only signs of damage or bad training."),
    ] = False,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the contents of a GGUF file or a checkpoint."""
    from bitexport.inspect import inspect as run

    out = Output(json=json, quiet=quiet)
    path = local_path(out, path, "model", revision)
    with out.progress("reading") as progress:
        report = run(path, health=health, progress=progress)
    for problem in (*report.problems, *report.notes):
        out.warn(problem)
    out.result(report.to_json(), human=lambda: _show_health(out, report) if health else _show(out, report))


def _show(out: Output, report: InspectReport) -> None:
    out.wrapped(f"{report.path}: {report.kind}, {report.architecture}, {report.file_type}")
    if report.diffusion is not None:
        found = report.diffusion
        shift = "the token after it" if found.token_shift else "its own token"
        out.wrapped(
            f"block diffusion: blocks of {found.block_size} tokens, mask token {found.mask_token_id}, each "
            f"position predicts {shift}",
            indent=2,
        )
    out.table(("key", "value"), [(key, _short(value)) for key, value in report.metadata.items()])
    rows = [
        (
            row.name,
            row.type,
            " x ".join(map(str, row.shape)),
            row.bytes,
            "" if row.scale is None else f"{row.scale:.6g}",
        )
        for row in report.tensors
    ]
    out.table(("tensor", "type", "shape", "bytes", "scale"), rows, right=("bytes", "scale"))
    types = ", ".join(f"{count} {kind}" for kind, count in report.types.items())
    out.wrapped(
        f"{counted(len(report.tensors), 'tensor')} ({types}), {format_bytes(report.total_bytes)}", indent=2
    )


def _show_health(out: Output, report: InspectReport) -> None:
    findings = report.health or []
    out.wrapped(
        f"{report.path}: {report.kind}, {report.architecture}, {report.file_type}, "
        f"{counted(len(report.tensors), 'tensor')}"
    )
    for finding in findings:
        out.wrapped(f"{finding.level}: {finding.message}", indent=2)
    if any(finding.level == "warning" for finding in findings):
        return
    if report.problems and report.kind == "checkpoint":
        out.line("unknown: it was not checked as a ternary model, see the warning")
    else:
        out.line("healthy: no sign of a bad checkpoint")


def _short(value: object) -> str:
    if isinstance(value, dict) and value.keys() == {"array_of", "length", "first"}:
        value = f"{value['length']} x {value['array_of']}: {', '.join(map(repr, value['first'][:5]))}, ..."
    text = " ".join(str(value).split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
