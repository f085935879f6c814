"""``bitexport parity`` on an embedding model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitexport.cli.output import Output, excerpt

if TYPE_CHECKING:
    from bitexport.parity.embedding_report import EmbeddingParityReport

# Characters of a text, so that the table fits 80 columns.
_EXCERPT = 24


def compare_embeddings(
    out: Output,
    checkpoint: Path,
    gguf: Path,
    prompts: list[str] | None,
    min_cosine: float,
    align: bool,
    threads: int,
) -> None:
    """Compare the vectors of both sides and print the report; arguments as for ``parity``.

    Raises:
        CheckFailed: the result is below the threshold.
    """
    from bitexport.parity.embedding import embedding_parity

    with out.progress("parity") as progress:
        report = embedding_parity(
            checkpoint, gguf, prompts, min_cosine=min_cosine, align=align, threads=threads, progress=progress
        )
    out.result(report.to_json(), human=lambda: _show(out, report))
    if not report.passed:
        raise out.failed(report.verdict())


def _show(out: Output, report: EmbeddingParityReport) -> None:
    rows = []
    for number, result in enumerate(report.prompts, start=1):
        rows.append(
            (
                f"{number} {excerpt(result.prompt, _EXCERPT)}",
                result.tokens,
                f"{result.vectors.cosine_min:.8f}",
                f"{result.pooled.cosine_min:.8f}",
            )
        )
    columns = ("text", "tokens", "tokens' cosine min", "embedding's cosine")
    out.table(columns, rows, title="Each text, plain (both sides unmodified):", right=columns[1:])
    if (aligned := report.aligned) is not None:
        out.wrapped(
            f"aligned: cosine is at least {aligned.pooled.cosine_min:.8f} for embeddings and "
            f"{aligned.tokens.cosine_min:.8f} for tokens; {aligned.adopted:,} of {aligned.compared:,} "
            "activations are on a rounding edge and rounded as in C++",
            indent=2,
        )
    verdict = report.verdict()
    out.wrapped(f"{'PASS' if report.passed else 'FAIL'} ({report.tier} kernels): {verdict}", indent=2)
