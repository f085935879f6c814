"""The table of ``bitexport parity --layers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitexport.cli.output import Output

if TYPE_CHECKING:
    from bitexport.parity.layers.result import LayersReport, StepResult


def show_layers(out: Output, report: LayersReport) -> None:
    """Every step in a row, then the finding."""
    columns = ["step", "own: 8-bit steps", "length", "aligned: 1 - cosine", "plain: 1 - cosine", ""]
    out.table(columns, [_row(step) for step in report.steps], right=columns[1:5])
    out.line(
        "own: PyTorch on the input that C++ had, the largest difference in steps of an 8-bit grid, and the "
        "length of C++ over PyTorch; aligned and plain: both from the tokens on"
    )
    if report.absent:
        out.line(f"not in this model: {', '.join(report.absent)}")
    if report.unnamed:
        out.line(f"not compared, because C++ does not name them: {', '.join(report.unnamed)}")
    if report.tokens < report.tokens_given:
        out.line(f"compared: {report.tokens:,} of {report.tokens_given:,} tokens, the first of each prompt")
    out.line(f"steps: {report.describe()}")


def _row(step: StepResult) -> list[str]:
    aligned = "-" if step.aligned is None else _small(step.aligned.cosine_gap)
    mark = "parts" if step.own.parted else ""
    own = step.own
    return [
        step.name,
        f"{own.grid_steps_max:.4f}",
        f"{own.length_ratio:.6f}",
        aligned,
        _small(step.plain.cosine_gap),
        mark,
    ]


def _small(value: float) -> str:
    return f"{value:.1e}" if value else "0"
