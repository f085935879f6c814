"""``bitexport train``."""

from __future__ import annotations

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
            "model from scratch, a teacher for instance.",
        ),
    ] = "all",
    run_dir: Annotated[
        str | None, typer.Option("--run-dir", help="Instead of the configuration's.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Distil a ternary student from a full-precision teacher; what it leaves, `bitexport convert` takes.

    Under torchrun or accelerate launch, start it as `-m train CONFIG.toml`.
    """
    try:
        from train.config import load_config
        from train.stages import train as run
    except ModuleNotFoundError as error:
        raise BitexportError(
            f"training needs the package {error.name}; install it with: pip install 'bitexport[train]'"
        ) from error

    out = Output(json=json, quiet=quiet)
    settings = load_config(config, run_dir=run_dir)
    with out.progress("train") as progress:
        model = run(settings, stage, resume=resume, say=out.info, progress=progress)
    result = model.parent / "result.json"
    document = {"model": str(model), "stage": stage, "result": None}
    if result.exists():
        import json as json_module

        document["result"] = json_module.loads(result.read_text(encoding="utf-8"))
    out.result(document, human=lambda: out.line(f"wrote {model}; next: bitexport convert {model} out.gguf"))
