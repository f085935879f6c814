"""``bitexport push``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bitexport.cli import options
from bitexport.cli.interrupt import terminable
from bitexport.cli.output import Output


def push(
    gguf: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="GGUF file.", show_default=False)],
    repo: Annotated[
        str,
        typer.Argument(
            metavar="OWNER/REPO",
            help="Repository on the hub; created if it does not exist.",
            show_default=False,
        ),
    ],
    card: Annotated[
        Path | None,
        typer.Option(
            "--card",
            metavar="README.md",
            help="Model card; if omitted, a repository without one gets a card of the file's facts.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            metavar="BRANCH",
            help="Branch; created if it does not exist. Default: main.",
            show_default=False,
        ),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", metavar="TEXT", help="Of the commit.", show_default=False),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Upload a GGUF file and its model card to the Hugging Face hub.

    It needs a token that may write: hf auth login, or HF_TOKEN. A file that does not load, or has damaged
    tensors, is not uploaded.
    """
    from bitexport.sharing.push import check, upload

    out = Output(json=json, quiet=quiet)
    with terminable():
        with out.progress("checking") as progress:
            checked = check(gguf, repo, card_file=card, revision=revision, progress=progress)
        bars = not quiet and sys.stderr.isatty()
        report = upload(checked, private=private, message=message, bars=bars)
    for warning in report.warnings:
        out.warn(warning)
    where = "a new private repository" if report.created and report.private else ""
    where = where or ("a new repository" if report.created else "an existing repository")
    out.info(f"uploaded {', '.join(report.files)} to {where}, commit {report.commit[:8]}")
    out.result(report.to_json(), human=lambda: out.line(report.url))
