"""``bitexport train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bitexport.cli import options
from bitexport.cli.output import Output
from bitexport.errors import BitexportError


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Settings of the run.", show_default=False)
    ],
    stage: Annotated[
        str,
        typer.Option(
            "--stage",
            help="1: surgery; 2: continued pre-training; 3: distillation; all: these three; pretrain: a "
            "model from scratch, for example a teacher.",
        ),
    ] = "all",
    run_dir: Annotated[
        str | None, typer.Option("--run-dir", help="Replaces run_dir of CONFIG.toml.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Distil a ternary student from a full-precision teacher.

    The result is a checkpoint that `bitexport convert` accepts. Under torchrun or accelerate launch, start
    it as `-m bitexport train CONFIG.toml`.
    """
    from bitexport.checkpoint.shards import read_json

    try:
        from bitexport.train.config import load_config
        from bitexport.train.stages import train as run
    except ModuleNotFoundError as error:
        raise BitexportError(
            f"training needs the package {error.name}; install it with: pip install 'bitexport[train]'"
        ) from error

    out = Output(json=json, quiet=quiet)
    settings = load_config(config, run_dir=run_dir)
    with out.progress("train") as progress:
        model = run(settings, stage, resume=resume, say=out.info, progress=progress)
    if os.environ.get("RANK", "0") != "0":
        return  # torchrun starts several processes; only the first prints the result
    result = model.parent / "result.json"
    document: dict[str, object] = {"model": str(model), "stage": stage, "result": None}
    if result.exists():
        document["result"] = read_json(result)
    out.result(document, human=lambda: out.line(f"wrote {model}; next: bitexport convert {model} out.gguf"))
