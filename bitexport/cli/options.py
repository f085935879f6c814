"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitexport.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")]
Checkpoint = Annotated[
    Path, typer.Argument(help="Checkpoint folder (config.json, *.safetensors).", show_default=False)
]
Gguf = Annotated[Path, typer.Argument(metavar="FILE.gguf", help="GGUF file.", show_default=False)]


def read_text(path: Path | None) -> str | None:
    """The text behind ``--text``; None without the option.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"--text {path}: {why}; give a UTF-8 text file") from error
