"""The report page of a parity run: one HTML file without scripts or external resources."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from bitexport import __version__
from bitexport.metrics.logits import Agreement
from bitexport.parity.details import Choice, Details, LogitDetails, TopDifference
from bitexport.parity.figures import depth, scatter
from bitexport.parity.layers.result import LayersReport, StepResult
from bitexport.parity.report import ParityReport, PromptResult, verdict

_STYLE = """
:root { color-scheme: light; --line: #ddd; --soft: #666; --bad: #b3261e; --good: #1b7f4b; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem; }
body { color: #222; background: white; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.soft { color: var(--soft); } .verdict { border-left: 5px solid; padding: .6rem 1rem; background: #fafafa; }
.pass { border-color: var(--good); } .fail { border-color: var(--bad); }
.pass b { color: var(--good); } .fail b { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } .n { text-align: right; white-space: nowrap; }
.wide { overflow-x: auto; } tr.bad td { color: var(--bad); font-weight: 600; }
img { max-width: 100%; height: auto; } code, .text { font-family: ui-monospace, monospace; font-size: .85em; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.difference { border: 1px solid var(--line); border-radius: 6px; padding: .6rem 1rem; margin: .8rem 0; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 0 2rem; }
.bar { height: .55rem; background: #1f77b4; border-radius: 2px; }
.bars td { border: 0; padding: .1rem .4rem; }
.half { width: 50%; vertical-align: middle; }
details td:first-child { white-space: nowrap; }
summary { cursor: pointer; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_PROMPT_EXCERPT, _CONTEXT_EXCERPT = 160, 160


def page(report: ParityReport, checkpoint: Path, gguf: Path) -> str:
    """Render the page as HTML.

    Raises:
        ValueError: the report has no details.
    """
    if report.details is None:
        raise ValueError("the report has no details; run parity with details=True")
    passed = "pass" if report.passed else "fail"
    parts = [
        f"<h1>Parity of {escape(gguf.name)}</h1>",
        f'<p class="soft">{escape(str(gguf))} against {escape(str(checkpoint))}; '
        f"{escape(report.tier)} kernels, bitexport {escape(__version__)}</p>",
        f'<p class="verdict {passed}"><b>{passed.upper()}</b> {escape(verdict(report))}</p>',
        *_summary(report),
        *_prompts(report),
        *_scatter(report.details.judged, report.judged_aligned),
        *(_layers(report.layers) if report.layers else ()),
        *_differences(report.details, report.prompts, report.judged_aligned),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Parity of {escape(gguf.name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _summary(report: ParityReport) -> Iterable[str]:
    yield "<h2>Summary</h2>"
    columns = ["", "positions", "cosine min", "cosine mean", "same top-1", "KL", "max |diff|"]
    rows = []
    for name, found in (
        (
            "aligned: PyTorch uses the file's embeddings and rounds as C++ did at rounding edges",
            report.aligned.agreement if report.aligned else None,
        ),
        ("plain: both sides unmodified", report.plain),
        ("noise floor: PyTorch against itself, embeddings off by one float32 rounding", report.noise_floor),
    ):
        if found is not None:
            rows.append([name, f"{found.positions:,}", *_agreement(found)])
    yield _table(columns, rows)
    judged = "aligned" if report.judged_aligned else "plain"
    yield (
        f'<p class="soft">Threshold: {judged} cosine of at least {report.min_cosine:g} at every position.'
        f"{' ' + escape(_sentence(report.aligned.describe())) if report.aligned else ''}</p>"
    )
    if report.activations is not None:
        yield f'<p class="soft">{escape(_sentence(report.activations.describe()))}</p>'
    if report.perplexity is not None:
        text = report.perplexity
        yield (
            f"<p>Perplexity over {text.tokens:,} tokens: Python {text.python:.4f}, C++ {text.cpp:.4f}, "
            f"a difference of {text.relative_difference:.4%}.</p>"
        )


def _prompts(report: ParityReport) -> Iterable[str]:
    yield "<h2>Prompts</h2>"
    yield f'<p class="soft">{escape(_prompts_note(report))}</p>'
    columns = ["", "prompt", "tokens", "cosine min", "cosine mean", "same top-1", "KL", "max |diff|"]
    if report.greedy_tokens:
        columns.append("greedy")
    rows = []
    for number, result in enumerate(report.prompts, start=1):
        row = [str(number), _short(result.prompt, _PROMPT_EXCERPT), str(result.tokens)]
        row += _agreement(result.agreement)
        if result.continuation is not None:
            row.append(f"{len(result.continuation.tokens)}/{report.greedy_tokens}")
        rows.append(row)
    yield _table(columns, rows, text=1)


def _prompts_note(report: ParityReport) -> str:
    note = "Logits of the plain comparison."
    if report.greedy_tokens:
        judged = "aligned" if report.judged_aligned else "plain"
        note += (
            f" Greedy ({judged}): tokens generated before the two sides diverge, of {report.greedy_tokens}."
        )
    return note


def _scatter(details: LogitDetails, aligned: bool) -> Iterable[str]:
    yield "<h2>Logits</h2>"
    count = sum(pairs.shape[1] for pairs in details.pairs)
    how = "aligned" if aligned else "plain"
    yield (
        f'<p class="soft">{count:,} sampled logits, {how}; every fourth is the most likely token of its '
        "position. If the file is correct, all points are on the line.</p>"
    )
    yield _image("png", scatter(details), "C++ logits against Python logits", width=480)


def _layers(report: LayersReport) -> Iterable[str]:
    yield "<h2>Depth</h2>"
    yield f"<p>{escape(_sentence(report.describe()))}</p>"
    yield _image("svg+xml", depth(report, "svg"), "1 - cosine of every step against depth")
    notes = [
        "Upper plot: both sides run from the input tokens. Lower plot (isolated): every PyTorch step runs on "
        "the input that C++ had, so an error shows only in the step that makes it."
    ]
    if report.absent:
        notes.append(f"Steps that this model does not have: {', '.join(report.absent)}.")
    if report.unnamed:
        notes.append(
            f"Steps not compared because C++ does not name their tensors: {', '.join(report.unnamed)}."
        )
    if report.tokens < report.tokens_given:
        notes.append(
            f"Compared on {report.tokens:,} of {report.tokens_given:,} tokens, the first of each prompt."
        )
    yield f'<p class="soft">{escape(" ".join(notes))}</p>'
    columns = [
        "step",
        "isolated: max difference in 8-bit steps",
        "isolated: length ratio",
        "aligned: 1 - cos",
        "plain: 1 - cos",
        "depends on",
    ]
    bad = {index for index, step in enumerate(report.steps) if step.diverged}
    table = _table(columns, [_step(step) for step in report.steps], bad=bad)
    yield f"<details><summary>All {len(report.steps)} steps</summary>{table}</details>"


def _step(step: StepResult) -> list[str]:
    return [
        step.name,
        f"{step.isolated.grid_steps_max:.4f}",
        f"{step.isolated.length_ratio:.6f}",
        f"{step.aligned.cosine_gap:.1e}" if step.aligned else "-",
        f"{step.plain.cosine_gap:.1e}",
        step.decided_by,
    ]


def _differences(details: Details, prompts: Sequence[PromptResult], aligned: bool) -> Iterable[str]:
    yield "<h2>Where the most likely token differs</h2>"
    if aligned:
        yield f"<p>Aligned: {_count(details.judged)}.</p>"
        yield from (_difference(found, prompts) for found in details.judged.differences)
    yield f"<p>Plain: {_count(details.plain)}.</p>"
    yield from (_difference(found, prompts) for found in details.plain.differences)


def _count(details: LogitDetails) -> str:
    shown = len(details.differences)
    text = f"{details.differing:,} of {details.positions:,} positions"
    return f"{text}, of which the first {shown} are shown" if shown < details.differing else text


def _difference(found: TopDifference, prompts: Sequence[PromptResult]) -> str:
    where = f"prompt {found.prompt + 1}, after token {found.position}"
    if found.position >= prompts[found.prompt].tokens:
        where += " (in the continuation)"
    context = escape(found.context[-_CONTEXT_EXCERPT:])
    return (
        f'<div class="difference"><p><span class="soft">{where}:</span> '
        f'<span class="text">{context}</span></p>'
        f'<div class="sides">{_bars("Python", found.python)}{_bars("C++", found.cpp)}</div></div>'
    )


def _bars(name: str, choices: Sequence[Choice]) -> str:
    rows = "".join(
        f'<tr><td class="text">{escape(repr(choice.text))}</td><td class="n">{choice.probability:.4f}</td>'
        f'<td class="half"><div class="bar" style="width:{100 * choice.probability:.1f}%"></div></td></tr>'
        for choice in choices
    )
    return f'<div><b>{escape(name)}</b><table class="bars">{rows}</table></div>'


def _agreement(found: Agreement) -> list[str]:
    return [
        f"{found.cosine_min:.8f}",
        f"{found.cosine_mean:.8f}",
        f"{found.top1_agreement:.2%}",
        f"{found.kl_mean:.1e}",
        f"{found.max_abs_diff:.3g}",
    ]


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 0, bad: Iterable[int] = ()
) -> str:
    """Cells are text, not HTML. All columns after index ``text`` are right-aligned, except "depends on"."""
    wrong = set(bad)

    def kind(index: int) -> str:
        if index > text and columns[index] != "depends on":
            return ' class="n"'
        return ' class="text"' if index == text and text else ""

    head = "".join(f"<th{kind(index)}>{escape(name)}</th>" for index, name in enumerate(columns))
    body = "".join(
        f"<tr{' class=bad' if number in wrong else ''}>"
        + "".join(f"<td{kind(index)}>{escape(cell)}</td>" for index, cell in enumerate(row))
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _image(kind: str, data: bytes, alt: str, width: int | None = None) -> str:
    size = f' width="{width}"' if width else ""
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{escape(alt)}"{size} src="data:image/{kind};base64,{encoded}">'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _sentence(clause: str) -> str:
    return f"{clause[:1].upper()}{clause[1:]}."
