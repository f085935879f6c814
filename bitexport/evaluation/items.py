"""What models are measured on: a text in windows, and pairs of a prompt and its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitexport.errors import UsageError
from bitexport.metrics.likelihood import WINDOW, windows

#: ``encode(text, special)``: token ids; ``special`` puts the tokens around it that the model wants there.
Encode = Callable[[str, bool], list[int]]


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """One line of a file of pairs.

    Attributes:
        prompt: rendered as the model wants it; special tokens stand in it by name.
        answer: what should follow.
        source: what was asked, before it became a prompt; None where the file does not tell.
        line: where it stands in the file, from 1; 0: it is of no file.
    """

    prompt: str
    answer: str
    source: str | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """A sequence of tokens, of which some are to be predicted.

    Attributes:
        ids: all of them.
        first: ``ids[first:]`` are counted, each given all tokens before it; at least 1.
    """

    ids: list[int]
    first: int = 1


def read_pairs(path: Path, limit: int | None = None) -> list[PromptAnswer]:
    """The pairs of a file of JSON lines: ``{"prompt": ..., "answer": ..., "source": ...}``.

    Blank lines are ignored, and so is everything else that a line tells.

    Args:
        limit: only the first so many; all when None.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, holds no pair, or a line that is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"--pairs {path}: {why}; give a UTF-8 file, one JSON object a line") from error
    pairs: list[PromptAnswer] = []
    # not splitlines(): it also breaks at characters that JSON allows inside a string
    for number, line in enumerate(text.split("\n"), start=1):
        if len(pairs) == limit:
            break
        if line.strip():
            pairs.append(_pair(line, f"--pairs {path}, line {number}", number))
    if not pairs:
        raise UsageError(f'--pairs {path} holds no pair; write {{"prompt": ..., "answer": ...}}, one a line')
    return pairs


def write_pairs(pairs: Iterable[PromptAnswer], path: Path) -> None:
    """The file that :func:`read_pairs` reads."""
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            line = {"prompt": pair.prompt, "answer": pair.answer}
            line |= {} if pair.source is None else {"source": pair.source}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _pair(line: str, where: str, number: int) -> PromptAnswer:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f'{where}: not JSON ({error}); expected {{"prompt": ..., "answer": ...}}') from error
    if not isinstance(value, dict):
        raise UsageError(f'{where}: {type(value).__name__}; expected {{"prompt": ..., "answer": ...}}')
    for key in ("prompt", "answer"):
        if not isinstance(value.get(key), str) or not value[key]:
            found = f"{key} is {value[key]!r}" if key in value else f"no {key!r}"
            raise UsageError(f"{where}: {found}; expected some text there")
    source = value.get("source")
    if source is not None and not isinstance(source, str):
        raise UsageError(f"{where}: source is {source!r}; expected text, or none at all")
    return PromptAnswer(value["prompt"], value["answer"], source, number)


def text_items(text: str, encode: Encode, context: int, limit: int | None = None) -> list[Item]:
    """A text in windows of ``likelihood.WINDOW`` tokens, or of ``context`` if that is less.

    Every window starts from an empty context, as in ``bitexport parity --text``.

    Raises:
        UsageError: the text has fewer than two tokens.
    """
    pieces = windows(encode(text, True), min(WINDOW, context))
    return [Item(list(piece)) for piece in pieces[:limit]]


def pair_items(pairs: Sequence[PromptAnswer], encode: Encode, end: int, context: int) -> list[Item]:
    """Pairs as tokens: the prompt with what the tokenizer puts around it, the answer without, and ``end``.

    The tokens of the answer count, ``end`` among them.

    Raises:
        UsageError: a prompt without tokens, or a pair that does not fit ``context`` tokens.
    """
    return [_pair_item(pair, encode, end, context) for pair in pairs]


def _pair_item(pair: PromptAnswer, encode: Encode, end: int, context: int) -> Item:
    where, remedy = f"--pairs, line {pair.line}", "shorten it, or leave that pair out"
    if not pair.line:
        where = f"--data, the pair {pair.prompt[:40]!r}"
        remedy = "give the run's held_out.jsonl as --pairs: it holds those that fit"
    prompt = encode(pair.prompt, True)
    ids = [*prompt, *encode(pair.answer, False), end]
    if not prompt:
        raise UsageError(f"{where}: the prompt has no tokens; give one that is not empty")
    if len(prompt) >= context:
        raise UsageError(
            f"{where}: the prompt has {len(prompt)} tokens and the model a context of {context}; {remedy}"
        )
    if len(ids) > context:
        raise UsageError(
            f"{where}: prompt and answer have {len(ids)} tokens and the model a context "
            f"of {context}; {remedy}"
        )
    return Item(ids, len(prompt))
