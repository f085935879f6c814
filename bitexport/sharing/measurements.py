"""Turns the ``--json`` documents of ``parity``, ``bench`` and ``eval`` into sections of a model card.

A document says by a fingerprint which file was measured, so that no figure gets onto the card of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitexport.errors import UsageError
from bitexport.system.reading import read_text


def read_document(path: Path) -> Mapping[str, Any]:
    """The JSON document in a file.

    Raises:
        UsageError: it cannot be read, or is not one JSON object.
    """
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(
            f"{path}: {reason}; give what bitexport parity, bench or eval printed with --json"
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not a JSON object; give what parity, bench or eval printed with --json")
    return found


def section(document: Mapping[str, Any], name: str, fingerprint: str) -> str:
    """A section of the card.

    Args:
        document: what the command printed with ``--json``.
        name: of the document, for messages.
        fingerprint: of the file that the card is for.

    Raises:
        UsageError: the document is of another command or another file, or its check failed.
    """
    try:
        if "columns" in document:
            return _evaluation(document, name, fingerprint)
        if "rows" not in document or not {"verdict", "load_seconds", "comparison"} & document.keys():
            raise UsageError(f"{name} is not a document of bitexport parity, bench or eval; leave it out")
        _check_file(document.get("fingerprint"), name, fingerprint)
        if "verdict" in document:
            return _parity(document, name)
        return _comparison(document) if "comparison" in document else _bench(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else f"has an unexpected value ({error})"
        raise UsageError(
            f"{name} {problem}, so another version of bitexport wrote it; measure again"
        ) from error


def _check_file(found: object, name: str, fingerprint: str) -> None:
    if not found:
        raise UsageError(f"{name} does not say which file it measured; measure again with this version")
    if found != fingerprint:
        raise UsageError(f"{name} measured another file than this one; measure this file, or leave it out")


def _parity(document: Mapping[str, Any], name: str) -> str:
    if not document["passed"]:
        raise UsageError(
            f"{name}: parity failed ({document['verdict']}); a card does not vouch for such a file: find the "
            "reason with bitexport doctor"
        )
    lines = [f"{document['verdict']} Kernels: {document['tier']}; {_count(document['prompts'], 'prompt')}."]
    if document.get("greedy_match") is not None and document.get("greedy_tokens"):
        identical = round(document["greedy_match"] * document["prompts"])
        lines.append(
            f"{identical} of {document['prompts']} greedy continuations of {document['greedy_tokens']} "
            "tokens are identical."
        )
    if (text := document.get("perplexity")) is not None:
        lines.append(
            f"Perplexity of a text of {text['tokens']:,} tokens, in windows of {text['window']}: "
            f"{text['python']:.4f} in PyTorch, {text['cpp']:.4f} in C++."
        )
    return _titled("C++ against PyTorch", "parity", " ".join(lines))


def _bench(document: Mapping[str, Any]) -> str:
    rows = [
        (
            row["test"] + ("" if row["batch"] == 1 else f" x {row['batch']}"),
            row["threads"],
            f"{row['tokens_per_second']:.2f} ± {row['stddev']:.2f}",
        )
        for row in document["rows"]
        if not row["disturbed"]
    ]
    left_out = len(document["rows"]) - len(rows)
    text = (
        f"On {document['cpu']} ({document['tier']} kernels), {_gib(document['rss_bytes'])} of memory in use. "
        "ppN is a prompt of N tokens at once, tgN is N tokens one by one."
    )
    if left_out:
        text += f" {_count(left_out, 'test')} left out, because other programs disturbed the measurement."
    return _titled("Speed", "bench", f"{text}\n\n{_table(('test', 'threads', 'tokens/s'), rows)}")


def _comparison(document: Mapping[str, Any]) -> str:
    rows = [
        (
            row["test"],
            row["threads"],
            row["type"],
            readable_bytes(document["bytes"][row["type"]]),
            f"{row['tokens_per_second']:.2f}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}x",
        )
        for row in document["rows"]
        if not row["disturbed"]
    ]
    text = f"The same weights in other types, on {document['cpu']} ({document['tier']} kernels)."
    table = _table(("test", "threads", "type", "size", "tokens/s", "this file is"), rows)
    return _titled("Speed against other types", "bench --compare", f"{text}\n\n{table}")


def _evaluation(document: Mapping[str, Any], name: str, fingerprint: str) -> str:
    columns = document["columns"]
    known = [column.get("fingerprint") for column in columns]
    if fingerprint not in known:
        _check_file(next(filter(None, known), None), name, fingerprint)
    labels = ["this file" if each["fingerprint"] == fingerprint else each["name"] for each in columns]
    rows = []
    for kind, title in (("text", "text"), ("pairs", "answers")):
        scores = [column[kind] for column in columns]
        rows += [
            _row(f"{title}: tokens", scores, lambda s: f"{s['tokens']:,}"),
            _row(f"{title}: perplexity", scores, lambda s: f"{s['perplexity']:,.3f}"),
            _row(f"{title}: next token right", scores, lambda s: f"{100 * s['accuracy']:.1f}%"),
        ]
    done = [column["translation"] for column in columns]
    rows += [
        _row("BLEU", done, lambda s: f"{s['bleu']:.2f}"),
        _row("chrF", done, lambda s: f"{s['chrf']:.2f}"),
    ]
    rows = [row for row in rows if any(row[1:])]
    return _titled("Quality", "eval", _table(("", *labels), rows))


def _row(label: str, scores: Sequence[Any], show: Any) -> tuple[str, ...]:
    return (label, *("" if score is None else show(score) for score in scores))


def _titled(title: str, command: str, text: str) -> str:
    return f"## {title}\n\n{text}\n\nMeasured with `bitexport {command}`.\n"


def _table(columns: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"


def readable_bytes(count: int) -> str:
    """``1234567`` -> ``"1.2 MB"``, in decimal units as the hub shows them."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
