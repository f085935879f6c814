"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors on stderr.")]
Checkpoint = Annotated[
    Path, typer.Argument(help="Checkpoint folder (config.json, *.safetensors).", show_default=False)
]
Gguf = Annotated[Path, typer.Argument(metavar="FILE.gguf", help="GGUF file.", show_default=False)]
