"""Options that several commands share, with the same names and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitexport.cli.hub import OR_FILE_NAME, OR_NAME
from bitexport.errors import UsageError
from bitexport.system.reading import read_text as read_file_text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors on stderr.")]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        help=f"Checkpoint folder (config.json, *.safetensors or *.bin), {OR_NAME}.", show_default=False
    ),
]
Gguf = Annotated[
    Path, typer.Argument(metavar="FILE.gguf", help=f"GGUF file, {OR_FILE_NAME}.", show_default=False)
]


def read_text(path: Path | None) -> str | None:
    """The text in the file of ``--text``; None without the option.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    if path is None:
        return None
    try:
        return read_file_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"--text {path}: {reason}; give a UTF-8 text file") from error
