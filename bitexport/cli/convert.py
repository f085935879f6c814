"""``bitexport convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from bitexport.cli import options
from bitexport.cli.hub import OR_FILE_NAME, Revision, local_path, path_or_name
from bitexport.cli.interrupt import terminable
from bitexport.cli.output import Output, counted, format_bytes

if TYPE_CHECKING:
    from bitexport.convert import ConvertReport


# As in ``bitexport.convert.choices``, which is not imported here so that --help is fast; a test compares the
# two.
TernaryType = Literal["auto", "i2_s", "tq2_0", "tq1_0", "q2_0", "f16"]
EmbedType = Literal["auto", "q6_k", "q5_k", "q4_k", "q8_0", "f16"]
Pooling = Literal["mean", "cls", "last"]


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            parser=path_or_name,
            metavar="CKPT",
            help=f"Checkpoint folder (config.json, *.safetensors or *.bin), GGUF file, {OR_FILE_NAME}.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUT.gguf",
            help="GGUF file to write; or a folder/, for a file named after the checkpoint.",
            show_default=False,
        ),
    ],
    ternary_type: Annotated[
        TernaryType | None,
        typer.Option(
            "--type",
            "--outtype",
            metavar="TYPE",
            case_sensitive=False,
            help=f"GGUF type of the ternary tensors: {', '.join(get_args(TernaryType))}. Default auto: for "
            "each the smallest that holds its scales exactly.",
            show_default=False,
        ),
    ] = None,
    embed_type: Annotated[
        EmbedType | None,
        typer.Option(
            "--embed-type",
            metavar="TYPE",
            case_sensitive=False,
            help=f"GGUF type of the embeddings and the output head: {', '.join(get_args(EmbedType))}. "
            "Default auto: ternary ones stay ternary, others become q6_k, and a GGUF file keeps its type.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.gguf if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and encode everything, write nothing.")
    ] = False,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(
            "--pre-tokenizer",
            metavar="NAME",
            help="llama.cpp's name for the pre-tokenizer, if it cannot be derived.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a checkpoint that looks damaged or untrained.")
    ] = False,
    all_float: Annotated[
        bool,
        typer.Option(
            "--float",
            help="Convert a float model, such as a teacher: its matrices and embeddings become f16.",
        ),
    ] = False,
    master: Annotated[
        bool,
        typer.Option(
            "--master",
            help="Read float weights as master weights, which become ternary, whatever config.json says.",
        ),
    ] = False,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            parser=path_or_name,
            metavar="DIR",
            help="Folder of a LoRA adapter (PEFT), or OWNER/REPO, to merge into float or master weights.",
            show_default=False,
        ),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            "--pooling",
            case_sensitive=False,
            help="How an embedding model makes one vector from a text's tokens. Default: as the "
            "checkpoint's sentence-transformers files say.",
            show_default=False,
        ),
    ] = None,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert a ternary checkpoint to a GGUF file, or a ternary GGUF file to another type."""
    from bitexport.convert import convert as run
    from bitexport.convert.driver import check_early

    out = Output(json=json, quiet=quiet)
    if not dry_run:
        check_early(output, force)  # fail now rather than after a download
    checkpoint = local_path(out, checkpoint, "model", revision)
    adapter = local_path(out, adapter, "adapter")
    with terminable(), out.progress("converting") as progress:
        report = run(
            checkpoint,
            output,
            type=ternary_type,
            embed_type=embed_type,
            force=force,
            dry_run=dry_run,
            pre_tokenizer=pre_tokenizer,
            strict=strict,
            all_float=all_float,
            master=master,
            adapter=adapter,
            pooling=pooling,
            progress=progress,
        )
    for warning in report.warnings:
        out.warn(warning)
    out.result(report.to_json(), human=lambda: _show(out, report))


def _show(out: Output, report: ConvertReport) -> None:
    rows = []
    for row in report.types:
        ternary = row.zero_fraction is not None
        rows.append(
            (
                row.type,
                row.tensors,
                format_bytes(row.bytes_before),
                format_bytes(row.bytes_after),
                f"{row.bits_per_weight:.3f}",
                f"{row.zero_fraction:.4f}" if ternary else "",
            )
        )
    columns = ("type", "tensors", "before", "after", "bits/weight", "zeros")
    out.table(columns, rows, right=columns[1:])
    for row in report.types:
        if row.scale_min is not None:
            out.wrapped(
                f"{row.type} scales: {row.scale_min:.6g} to {row.scale_max:.6g}, rounded by at most "
                f"{row.scale_rounding:.2g} of their value"
            )
    if report.type_reason:
        out.wrapped(report.type_reason)
    padding = f", {report.padded_tokens} of them padding" if report.padded_tokens else ""
    out.wrapped(
        f"tokenizer {report.tokenizer}, pre-tokenizer {report.pre_tokenizer}, {report.tokens} tokens{padding}"
    )
    if (embedding := report.embedding) is not None:
        named = f", prompts {', '.join(embedding.prompts)}" if embedding.prompts else ""
        out.wrapped(
            f"embedding model: pooling {embedding.pooling}, "
            f"{'normalized' if embedding.normalize else 'not normalized'}{named}"
        )
    if report.changed:
        out.wrapped(f"metadata: {'; '.join(report.changed)}; the rest is unchanged")
    if report.adapter is not None:
        out.wrapped(f"adapter {report.adapter} merged")
    verb = "would write" if report.dry_run else "wrote"
    out.wrapped(
        f"{verb} {report.output}: {report.architecture} from {report.packing} weights, "
        f"{counted(report.tensors, 'tensor')} ({report.ternary_tensors} ternary), "
        f"{format_bytes(report.input_bytes)} -> {format_bytes(report.output_bytes)} "
        f"in {report.seconds:.1f} s, peak memory {format_bytes(report.peak_rss_bytes)}"
    )
