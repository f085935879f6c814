"""Options that several commands share, with the same names and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitexport.cli.hub import OR_FILE_NAME, OR_NAME, local_path, path_or_name
from bitexport.errors import UsageError
from bitexport.system.reading import read_text as read_file_text

if TYPE_CHECKING:
    from bitexport.cli.output import Output
    from bitexport.runtime.sampling import Sampling

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors on stderr.")]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        parser=path_or_name,
        metavar="CKPT",
        help=f"Checkpoint folder (config.json, *.safetensors or *.bin), {OR_NAME}.",
        show_default=False,
    ),
]
Gguf = Annotated[
    Path,
    typer.Argument(
        parser=path_or_name, metavar="FILE.gguf", help=f"GGUF file, {OR_FILE_NAME}.", show_default=False
    ),
]

Threads = Annotated[int, typer.Option("--threads", "-t", min=0, help="Number of threads; 0: one per core.")]

Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        metavar="HOST:PORT,...",
        help="Machines that run `bitexport worker` and compute some of the layers.",
    ),
]
Layers = Annotated[
    str,
    typer.Option(
        "--layers",
        metavar="N,...",
        help="With --workers: layers for this machine and each worker. Default: as even as memory allows.",
    ),
]

# Of the commands that generate text: run, chat and serve.
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="lookup|FILE",
        help="Evaluate several tokens in one pass where they can be foreseen: from the text so far (lookup), "
        "or by a smaller model with the same tokens. The text stays the same.",
        show_default=False,
    ),
]
DraftTokens = Annotated[
    int,
    typer.Option(
        "--draft-tokens",
        metavar="N",
        help="With --draft: the most tokens drafted for a pass, 1 to 31; as many as seem worth it.",
    ),
]
Context = Annotated[
    int,
    typer.Option(
        "--ctx", "--ctx-size", "-c", min=0, help="Context in tokens; 0: the model's own, up to 4096."
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        "--temp",
        min=0.0,
        help="Sampling temperature; 0 always chooses the most likely token.",
    ),
]
TopK = Annotated[
    int, typer.Option("--top-k", min=0, help="Sample from this many most likely tokens; 0: all.")
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", max=1.0, help="Sample from the most likely tokens up to this probability; 1: all."
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p",
        min=0.0,
        max=1.0,
        help="Sample from tokens with this share of the most likely one's probability; 0: all.",
    ),
]
RepeatPenalty = Annotated[
    float,
    typer.Option(
        "--repeat-penalty",
        min=0.0,
        help="Makes the last 64 tokens less likely, as llama.cpp does, prompt included; 1: off.",
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, help="Random seed; the same seed gives the same text."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End before this text; may be repeated.", show_default=False),
]
JsonSchema = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="SCHEMA",
        help="Generate JSON that follows this JSON schema, a file or the schema itself.",
        show_default=False,
    ),
]
Grammar = Annotated[
    Path | None,
    typer.Option(
        "--grammar",
        metavar="FILE",
        help="Generate text that follows this grammar, in llama.cpp's GBNF.",
        show_default=False,
    ),
]


def read_text(path: Path | None, option: str = "--text") -> str | None:
    """The text in the file of an option; None without the option.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    if path is None:
        return None
    try:
        return read_file_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"{option} {path}: {reason}; give a UTF-8 text file") from error


def draft(out: Output, value: str | None) -> str | Path | None:
    """The value of --draft: ``"lookup"``, or the path of a file, which may be downloaded first."""
    return value if value is None or value == "lookup" else local_path(out, path_or_name(value), "gguf")


def layers(text: str) -> list[int]:
    """``"10,11"`` -> ``[10, 11]``.

    Raises:
        UsageError: it is not a list of numbers.
    """
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(
            f"--layers is {text!r}; expected whole numbers separated by commas, such as 10,11"
        ) from error


def sampling(
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    seed: int,
    json_schema: str | None,
    grammar: Path | None,
) -> Sampling:
    """What the options of generation say.

    Raises:
        UsageError: a value is out of range; or a schema or a grammar cannot be read or has a mistake.
    """
    from bitexport.runtime.sampling import Sampling

    return Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        grammar=_grammar(json_schema, grammar),
    )


def _grammar(json_schema: str | None, grammar: Path | None) -> str:
    if json_schema is not None and grammar is not None:
        raise UsageError("--json-schema and --grammar exclude each other; give one of them")
    if json_schema is not None:
        from bitexport.runtime.grammar import json_schema_grammar

        # a schema is an object or true or false, and no file is called so
        inline = json_schema.lstrip().startswith("{") or json_schema.strip() in ("true", "false")
        schema = json_schema if inline else read_text(Path(json_schema), "--json-schema")
        return json_schema_grammar(schema or "")
    text = read_text(grammar, "--grammar") or ""
    if grammar is not None and not text.strip():
        raise UsageError(f"--grammar {grammar}: the file is empty; expected rules in GBNF, one named root")
    return text
