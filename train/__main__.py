"""``python -m train``: the command line of the training module. No logic here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bitexport.errors import BitexportError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m train", description="Train ternary language models.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("pretrain", help="train a model from scratch")
    command.add_argument("config", type=Path, metavar="CONFIG.toml")
    command.add_argument("--run-dir", help="folder of the run, instead of the configuration's")
    command.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")

    command = commands.add_parser("export", help="pack trained weights, four trits a byte")
    command.add_argument("master", type=Path, metavar="MASTER", help="RUN/master or RUN/checkpoint-<step>")
    command.add_argument("output", type=Path, metavar="OUT")
    command.add_argument("--force", action="store_true", help="replace a model that is there")

    command = commands.add_parser(
        "evaluate", help="held-out perplexity of a checkpoint, by PyTorch in float32"
    )
    command.add_argument("checkpoint", type=Path, metavar="CKPT")
    command.add_argument("--sequence-length", type=int, default=512, help="tokens a window")

    command = commands.add_parser("held-out", help="print text that no model was trained on")
    command.add_argument("--max-bytes", type=int, help="stop after so many bytes, at the end of a line")

    for name in ("evaluate", "held-out"):
        command = commands.choices[name]
        command.add_argument(
            "--text-dir", default="", help="folder of sources, instead of the standard library"
        )
        command.add_argument("--held-out-percent", type=int, default=5, help="as the model was trained with")

    command = commands.add_parser("plot", help="draw the loss curve of a run")
    command.add_argument("log", type=Path, metavar="RUN/log.jsonl")
    command.add_argument("picture", type=Path, metavar="OUT.png")

    options = parser.parse_args(arguments)
    try:
        _run(options)
    except BitexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    # Imported late: torch takes seconds, and --help does not need it.
    if options.command == "pretrain":
        from train.config import load_config
        from train.pretrain import pretrain

        pretrain(load_config(options.config, run_dir=options.run_dir), resume=options.resume)
    elif options.command == "export":
        from train.export import export_packed

        export_packed(options.master, options.output, force=options.force)
    elif options.command == "evaluate":
        from train.evaluate import held_out_perplexity

        length, text_dir = options.sequence_length, options.text_dir
        print(json.dumps(held_out_perplexity(options.checkpoint, options.held_out_percent, length, text_dir)))
    elif options.command == "held-out":
        from train.corpus import held_out_text

        text = held_out_text(options.held_out_percent, options.text_dir, options.max_bytes)
        sys.stdout.buffer.write(text.encode())
    elif options.command == "plot":
        from train.loss_plot import plot

        plot(options.log, options.picture)


if __name__ == "__main__":
    sys.exit(main())
