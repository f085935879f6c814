"""``bitexport eval --tasks``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitexport.cli.hub import local_path
from bitexport.cli.interrupt import terminable
from bitexport.cli.output import Output, counted
from bitexport.errors import UsageError

if TYPE_CHECKING:
    from bitexport.evaluation.tasks.report import TaskReport


def run_tasks(out: Output, model: Path, tasks: str, *, revision: str | None, **options: Any) -> None:
    """Evaluate a GGUF file on tasks and print their scores.

    Raises:
        UsageError: the model is not a GGUF file.
    """
    from bitexport.evaluation.tasks import evaluate_tasks, require_harness
    from bitexport.progress import patient

    require_harness()
    file = local_path(out, model, "gguf", revision)
    if file.is_dir():
        raise UsageError(
            f"--tasks needs a GGUF file, and {file} is a folder; convert it first: bitexport convert {file} "
            f"{file.name}.gguf"
        )
    names = [name.strip() for name in tasks.split(",")]
    with terminable(), out.progress("eval") as progress:
        report = evaluate_tasks(file, names, progress=patient(progress), **options)
    out.result(report.to_json(), human=lambda: _show(out, report))


def _show(out: Output, report: TaskReport) -> None:
    columns = ["task", "metric", "value", "±", "shots", "n"]
    rows: list[list[str]] = []
    last = ""
    for score in report.scores():
        first, last = score.task != last, score.task
        rows.append(
            [
                score.task if first else "",
                score.metric,
                _number(score.value),
                "" if score.error is None else _number(score.error),
                "" if score.shots is None or not first else str(score.shots),
                "" if score.samples is None or not first else f"{score.samples:,}",
            ]
        )
    out.table(columns, rows, title=Path(report.file).name, right=columns[2:])
    rate = report.requests / report.seconds if report.seconds else 0
    out.wrapped(
        f"lm-eval {report.harness}: {counted(report.requests, 'request')} in {report.seconds:.1f} s "
        f"({rate:,.1f} per second); ± is the standard error"
    )
    if report.settings["limit"] is not None:
        out.wrapped(f"only the first {counted(report.settings['limit'], 'question')} of each task")


def _number(value: float) -> str:
    """Four decimals, or four digits of a perplexity that is off the scale."""
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3e}"
