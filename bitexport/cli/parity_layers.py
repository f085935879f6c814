"""The table of ``bitexport parity --layers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitexport.cli.output import Output

if TYPE_CHECKING:
    from bitexport.parity.layers.result import LayersReport, StepResult


def show_layers(out: Output, report: LayersReport) -> None:
    """One row per step, then the finding."""
    columns = ["step", "isolated", "length ratio", "aligned", "plain", ""]
    out.table(columns, [_row(step) for step in report.steps], right=columns[1:5])
    out.wrapped(
        "isolated: PyTorch runs the step on the input that C++ had; largest difference in steps of an 8-bit "
        "grid, and the L2 norm of the C++ values divided by PyTorch's",
        indent=2,
    )
    out.wrapped("aligned, plain: 1 - cosine, with both sides run from the input tokens", indent=2)
    if report.absent:
        out.wrapped(f"not in this model: {', '.join(report.absent)}", indent=2)
    if report.unnamed:
        out.wrapped(
            f"not compared, because C++ does not name the tensors: {', '.join(report.unnamed)}", indent=2
        )
    if report.tokens < report.tokens_given:
        out.wrapped(
            f"compared: {report.tokens:,} of {report.tokens_given:,} tokens, the first of each prompt",
            indent=2,
        )
    out.wrapped(f"steps: {report.describe()}", indent=2)


def _row(step: StepResult) -> list[str]:
    aligned = "-" if step.aligned is None else _small(step.aligned.cosine_gap)
    return [
        step.name,
        f"{step.isolated.grid_steps_max:.4f}",
        f"{step.isolated.length_ratio:.6f}",
        aligned,
        _small(step.plain.cosine_gap),
        "diverges" if step.diverged else "",
    ]


def _small(value: float) -> str:
    return f"{value:.1e}" if value else "0"
