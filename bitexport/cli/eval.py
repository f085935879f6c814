"""``bitexport eval``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from bitexport.cli import options
from bitexport.cli.eval_tasks import run_tasks
from bitexport.cli.hub import OR_FILE_NAME, Revision, local_path, path_or_name
from bitexport.cli.interrupt import terminable
from bitexport.cli.output import Output
from bitexport.errors import UsageError

T = TypeVar("T")

if TYPE_CHECKING:
    from bitexport.evaluation import EvaluationReport
    from bitexport.metrics.likelihood import PredictionScore


def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            parser=path_or_name,
            metavar="CKPT_OR_GGUF",
            help=f"Checkpoint folder, ternary or float; GGUF file; {OR_FILE_NAME}.",
            show_default=False,
        ),
    ],
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher",
            parser=path_or_name,
            metavar="CKPT_OR_GGUF",
            help="The model it was made from; the others are compared with it.",
            show_default=False,
        ),
    ] = None,
    student_gguf: Annotated[
        Path | None,
        typer.Option(
            "--student-gguf",
            parser=path_or_name,
            metavar="FILE.gguf",
            help="The file made from the checkpoint; if omitted, a temporary one is made.",
            show_default=False,
        ),
    ] = None,
    teacher_gguf: Annotated[
        Path | None,
        typer.Option(
            "--teacher-gguf",
            parser=path_or_name,
            metavar="FILE.gguf",
            help="The file made from the teacher; adds a column for it.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="A text that the models have not seen; bitexport's built-in prompts if there are no "
            "pairs either.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            metavar="FILE.jsonl",
            help='Pairs that the models have not seen, one {"prompt": "TEXT", "answer": "TEXT"} per line, '
            "the prompt as the model expects it.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="Instead of --pairs: a source of the training run (gettext:fr, parallel:a.en,a.fr), from "
            "which to take the pairs that training held out. Repeat for every source of the run.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help="With --data, how training rendered a pair: tags, chat or hy-mt1.5.",
            show_default=False,
        ),
    ] = None,
    source_language: Annotated[str, typer.Option("--source-language", help="With --data.")] = "en",
    target_language: Annotated[str, typer.Option("--target-language", help="With --data.")] = "fr",
    held_out_percent: Annotated[
        int, typer.Option("--held-out-percent", help="With --data, the percentage that training held out.")
    ] = 5,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAMES",
            help="Standard tasks of lm-evaluation-harness instead, on a GGUF file: names with commas, "
            "arc_easy,hellaswag. Needs bitexport[tasks].",
            show_default=False,
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num-fewshot",
            min=0,
            help="With --tasks, examples before each question; if omitted, as the task says.",
            show_default=False,
        ),
    ] = None,
    tasks_path: Annotated[
        Path | None,
        typer.Option(
            "--tasks-path",
            metavar="DIR",
            help="With --tasks, a folder with tasks of your own; Python code in it is executed.",
            show_default=False,
        ),
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option("--apply-chat-template", help="With --tasks, ask in the model's chat template."),
    ] = False,
    context: Annotated[
        int,
        typer.Option(
            "--ctx",
            "-c",
            min=0,
            help="With --tasks, the longest text in tokens, longer ones lose their beginning; 0: the model's "
            "own context.",
        ),
    ] = 0,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Use only the first N pairs, and windows of the text; with --tasks, the first N questions "
            "of each.",
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=0, help="Most tokens of a greedy answer; 0: no answers.")
    ] = 128,
    threads: Annotated[
        int, typer.Option("--threads", "-t", min=0, help="Threads; 0: chosen to suit the model.")
    ] = 0,
    revision: Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure quality on held-out text and pairs, next to the teacher, in Python and in C++.

    Perplexity, next-token accuracy, BLEU and chrF of greedy answers, and the
    similarity between the hidden states of teacher and student. Or, with --tasks,
    the scores of a GGUF file on standard tasks.
    """
    if tasks is not None:
        others = {
            "--teacher": teacher,
            "--student-gguf": student_gguf,
            "--teacher-gguf": teacher_gguf,
            "--text": text,
            "--pairs": pairs,
            "--data": data,
            "--template": template,
            "--source-language": source_language != "en",
            "--target-language": target_language != "fr",
            "--held-out-percent": held_out_percent != 5,
            "--max-tokens": max_tokens != 128,
        }
        for option, value in others.items():
            if value:
                raise UsageError(f"--tasks and {option} exclude each other; leave {option} out")
        run_tasks(
            Output(json=json, quiet=quiet),
            model,
            tasks,
            revision=revision,
            num_fewshot=num_fewshot,
            limit=limit,
            tasks_path=tasks_path,
            apply_chat_template=apply_chat_template,
            n_ctx=context,
            threads=threads,
        )
        return
    if num_fewshot is not None or tasks_path is not None or apply_chat_template or context:
        raise UsageError(
            "--num-fewshot, --tasks-path, --apply-chat-template and --ctx belong to --tasks; add it"
        )
    if data and pairs is not None:
        raise UsageError("--data and --pairs exclude each other; give one of them")
    if bool(data) != (template is not None):
        missing = "--template (tags, chat or hy-mt1.5)" if data else "--data"
        raise UsageError(f"--data and --template go together; add {missing}, as in training")
    document = options.read_text(text)
    out = Output(json=json, quiet=quiet)
    model = local_path(out, model, "model", revision)
    teacher = local_path(out, teacher, "model")
    student_gguf = local_path(out, student_gguf, "gguf")
    teacher_gguf = local_path(out, teacher_gguf, "gguf")
    from bitexport.evaluation import evaluate as run
    from bitexport.evaluation import held_out_pairs, read_pairs
    from bitexport.text import Template

    chosen = read_pairs(pairs, limit) if pairs is not None else None
    if data and template:
        form = Template(template, source_language, target_language)
        chosen = held_out_pairs(data, form, held_out_percent, (model, teacher))
    with terminable(), out.progress("eval") as progress:
        report = run(
            model,
            teacher=teacher,
            student_gguf=student_gguf,
            teacher_gguf=teacher_gguf,
            text=document,
            pairs=chosen,
            limit=limit,
            max_tokens=max_tokens,
            threads=threads,
            progress=progress,
        )
    out.result(report.to_json(), human=lambda: _show(out, report))


def _show(out: Output, report: EvaluationReport) -> None:
    columns = ["", *(column.name for column in report.columns)]
    rows = [row for row in _rows(report) if any(row[1:])]
    out.table(columns, rows, right=columns[1:])
    if any(column.translation for column in report.columns):
        found = next(column.translation for column in report.columns if column.translation)
        out.wrapped(f"BLEU: {found.bleu_signature}; chrF: {found.chrf_signature}")
        uncertainty = next(column.uncertainty for column in report.columns if column.uncertainty)
        resamples = f"{uncertainty.resamples:,} resamples of the pairs"
        out.wrapped(f"intervals: 95%, by paired bootstrap with {resamples}")
    if report.teacher is not None:
        out.wrapped(
            f"compared with {report.teacher.name}: kept in percent of its score, perplexity as a ratio"
        )
    if report.converted is not None:
        kinds = f"{report.converted['type']} with {report.converted['embed_type']} embeddings"
        out.wrapped(f"student-c++: a temporary file, {kinds}")
    for name, reason in report.skipped.items():
        out.wrapped(f"{name}: not measured: {reason}")


def _rows(report: EvaluationReport) -> list[list[str]]:
    """All rows of the table; the caller drops the empty ones."""
    kept = [report.kept(column) for column in report.columns]
    done = [column.translation for column in report.columns]
    answers = f"{report.pairs:,} answers"
    return [
        *_predictions("text", [column.text for column in report.columns]),
        _row("text: perplexity over the teacher's", kept, lambda k: k.text_perplexity, "{:.3f}"),
        *_predictions(answers, [column.pairs for column in report.columns]),
        _row(f"{answers}: perplexity over the teacher's", kept, lambda k: k.pairs_perplexity, "{:.3f}"),
        _row("BLEU", done, lambda t: t.bleu, "{:.2f}"),
        _intervals("BLEU", "bleu", report),
        _differences("BLEU", "bleu", report),
        _row("BLEU kept", kept, lambda k: k.bleu, "{:.1f}%"),
        _row("chrF", done, lambda t: t.chrf, "{:.2f}"),
        _intervals("chrF", "chrf", report),
        _differences("chrF", "chrf", report),
        _row("chrF kept", kept, lambda k: k.chrf, "{:.1f}%"),
        _row("exact answers", done, lambda t: 100 * t.exact, "{:.1f}%"),
        _intervals("exact answers", "exact", report),
        _differences("exact answers", "exact", report),
        _row("answers that end", done, lambda t: 100 * t.ended, "{:.1f}%"),
        _row("hidden states: cosine", report.columns, lambda c: c.similarity, "{:.4f}"),
        _row("seconds", report.columns, lambda c: c.seconds, "{:.1f}"),
    ]


def _intervals(label: str, score: str, report: EvaluationReport) -> list[str]:
    cells = []
    for column in report.columns:
        found = column.uncertainty and column.uncertainty.scores[score]
        cells.append(f"{found.low:.2f} to {found.high:.2f}" if found else "")
    return [f"{label}: 95% interval", *cells]


def _differences(label: str, score: str, report: EvaluationReport) -> list[str]:
    """The interval of the difference from the teacher, in points."""
    cells = []
    for column in report.columns:
        differences = column.uncertainty and column.uncertainty.differences
        found = differences and differences[score]
        cells.append(f"{found.low:+.2f} to {found.high:+.2f}" if found else "")
    return [f"{label} minus the teacher's", *cells]


def _predictions(what: str, scores: list[PredictionScore | None]) -> list[list[str]]:
    return [
        _row(f"{what}: tokens", scores, lambda s: s.tokens, "{:,}"),
        [
            f"{what}: perplexity",
            *("" if score is None else _perplexity(score.perplexity) for score in scores),
        ],
        _row(f"{what}: next token right", scores, lambda s: 100 * s.accuracy, "{:.1f}%"),
    ]


def _perplexity(value: float) -> str:
    """Four digits of one that is off the scale, as an untrained model's can be."""
    return f"{value:,.3f}" if value < 1e6 else f"{value:.3e}"


def _row(label: str, items: Iterable[T | None], value: Callable[[T], float | None], shape: str) -> list[str]:
    """A row of the table: one cell per item, empty if the item is None or has no such value."""
    values = [None if item is None else value(item) for item in items]
    return [label, *("" if number is None else shape.format(number) for number in values)]
