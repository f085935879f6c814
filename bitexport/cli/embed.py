"""``bitexport embed``."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bitexport.cli import options
from bitexport.cli.hub import Revision, local_path
from bitexport.cli.output import Output, counted, excerpt, until_reader_leaves
from bitexport.errors import OutputError, UsageError
from bitexport.system.reading import read_text

if TYPE_CHECKING:
    from bitexport.embed import EmbedReport

# As in ``bitexport.gguf.embedding_settings``, which is not imported here so that --help is fast.
Pooling = Literal["mean", "cls", "last"]

# Characters of a text, and values of a vector, so that the table fits 80 columns.
_EXCERPT = 28
_VALUES = 4


def embed(
    gguf: options.Gguf,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="TEXT", help="A text; may be repeated.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="Texts, one per line; - reads stdin.", show_default=False
        ),
    ] = None,
    prompt_name: Annotated[
        str | None,
        typer.Option(
            "--prompt-name",
            metavar="NAME",
            help="Put this one of the file's prompts in front of each text, for example query.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="Put this text in front of each text.", show_default=False
        ),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            "--pooling",
            case_sensitive=False,
            help="How to make one vector from the tokens. Default: as the file says.",
            show_default=False,
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Divide each vector by its L2 norm or keep its length. Default: as the file says.",
            show_default=False,
        ),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are longer than the model's context.")
    ] = False,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=256, help="At most this many texts in one evaluation.")
    ] = 64,
    npy: Annotated[
        Path | None,
        typer.Option(
            "--npy",
            metavar="OUT.npy",
            help="Write the vectors as a NumPy file: float32, one row per text.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.npy if it exists.")] = False,
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="Number of threads; 0: one per core.")
    ] = 0,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print one JSON object per text on stdout.")] = False,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Turn texts into vectors with an embedding model."""
    texts = [*(text or []), *(_lines(file) if file is not None else [])]
    if not texts:
        raise UsageError("there are no texts; give some with --text or --file")
    if json and jsonl:
        raise UsageError("both --json and --jsonl are given; expected one of them")
    if npy is not None:
        _check_npy(npy, force)
    from bitexport.embed import embed as run

    out = Output(json=json, quiet=quiet)
    gguf = local_path(out, gguf, "gguf", revision)
    with out.progress("embedding") as progress:
        report = run(
            gguf,
            texts,
            prompt=prompt,
            prompt_name=prompt_name,
            pooling=pooling,
            normalize=normalize,
            truncate=truncate,
            batch_texts=batch,
            threads=threads,
            progress=progress,
        )
    cut = sum(found.truncated for found in report.embeddings)
    if cut:
        out.warn(f"{cut} of {len(texts)} texts {'was' if cut == 1 else 'were'} cut to the model's context")
    if npy is not None:
        _write_npy(npy, report)
        out.info(f"wrote {npy}: float32 [{len(texts)}, {report.dimension}]")
    with until_reader_leaves():
        if jsonl:
            for found in report.embeddings:
                sys.stdout.write(json_module.dumps(found.to_json(), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif json or npy is None:
            out.result(report.to_json(), human=lambda: _show(out, report))


def _lines(path: Path) -> list[str]:
    """The lines of a file, or of stdin, except blank ones."""
    try:
        content = sys.stdin.buffer.read().decode("utf-8") if str(path) == "-" else read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"--file {path}: {reason}; give a UTF-8 text file, one text per line") from error
    # a blank line in between is an error later on: without it, the rows would not be those of the lines
    lines = content.removesuffix("\n").split("\n")
    if not content.strip():
        raise UsageError(f"--file {path}: no text; write one per line")
    return [line.rstrip("\r") for line in lines]


def _check_npy(path: Path, force: bool) -> None:
    from bitexport.system.files import check_folder

    if path.is_dir():
        raise OutputError(f"--npy {path} is a folder; give the name of a file")
    if path.exists() and not force:
        raise OutputError(f"--npy {path} exists; use --force to replace it, or another name")
    check_folder(path)


def _write_npy(path: Path, report: EmbedReport) -> None:
    import io

    import numpy as np

    from bitexport.system.files import write_atomically

    buffer = io.BytesIO()
    np.save(buffer, report.array(), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def _show(out: Output, report: EmbedReport) -> None:
    rows = []
    for number, found in enumerate(report.embeddings, start=1):
        values = "  ".join(f"{value:+.4f}" for value in found.vector[:_VALUES])
        rows.append((f"{number} {excerpt(found.text, _EXCERPT)}", found.tokens, f"{values}  …"))
    out.table(("text", "tokens", f"vector [{report.dimension}]"), rows, right=("tokens",))
    prompt = f", prompt {report.prompt!r}" if report.prompt else ""
    normalized = "normalized" if report.normalized else "not normalized"
    out.wrapped(
        f"{counted(len(rows), 'vector')} of {report.dimension} values ({report.tier} kernels): pooling "
        f"{report.pooling}, {normalized}{prompt}; --jsonl or --npy gives all values",
        indent=2,
    )
