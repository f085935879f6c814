"""``bitexport card``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitexport.cli import options
from bitexport.cli.hub import Revision, local_path
from bitexport.cli.output import Output
from bitexport.errors import OutputError


def card(
    gguf: options.Gguf,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="README.md",
            help="File to write; if omitted, the card goes to stdout.",
            show_default=False,
        ),
    ] = None,
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            "--report",
            metavar="FILE.json",
            help="What parity, bench or eval printed with --json about this file; may be repeated.",
            show_default=False,
        ),
    ] = None,
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure the speed now, as bitexport bench does.")
    ] = False,
    repo: Annotated[
        str | None,
        typer.Option(
            "--repo",
            metavar="OWNER/REPO",
            help="Where the file will be, for the command that runs it.",
            show_default=False,
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="For example mit or apache-2.0.", show_default=False),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model", metavar="OWNER/REPO", help="The model that was converted.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace README.md if it exists.")] = False,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a model card: the facts of a GGUF file, and what was measured of it.

    No figure is in it that was not measured on this very file. What only its author knows, such as the
    licence, is left as a blank that is marked FILL IN.
    """
    from bitexport.sharing import card as run

    out = Output(json=json, quiet=quiet)
    if output is not None:
        _check_output(output, force)
    gguf = local_path(out, gguf, "gguf", revision)
    measured: list[Path | dict[str, object]] = [*(reports or [])]
    if bench:
        from bitexport.bench import bench as measure

        run(gguf, reports=measured)  # a mistake in them is found now rather than after minutes
        with out.progress("bench") as progress:
            measured.append(measure(gguf, progress=progress).to_json())
    made = run(gguf, reports=measured, repo=repo, license=license, base_model=base_model)
    if made.blanks:
        out.info(f"to fill in: {', '.join(made.blanks)}")
    if output is not None:
        from bitexport.system.files import write_atomically

        write_atomically(output, made.text.encode())
    document = {
        "gguf": str(gguf),
        "output": None if output is None else str(output),
        "blanks": list(made.blanks),
        "card": made.text,
    }
    out.result(
        document, human=lambda: out.stream(made.text) if output is None else out.line(f"wrote {output}")
    )


def _check_output(output: Path, force: bool) -> None:
    from bitexport.system.files import check_folder

    check_folder(output)
    if output.exists() and not force:
        raise OutputError(f"{output} exists; use --force to replace it, or another name")
