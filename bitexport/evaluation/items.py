"""What models are measured on: windows of a text, and pairs of a prompt and its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitexport.errors import UsageError
from bitexport.metrics.likelihood import WINDOW, windows
from bitexport.system.reading import read_text

#: ``encode(text, special)``: token ids; ``special`` adds the special tokens that the model expects around it.
Encode = Callable[[str, bool], list[int]]


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """One line of a file of pairs.

    Attributes:
        prompt: rendered as the model expects it, with special tokens written by name.
        answer: the expected continuation.
        source: the text that the prompt was made from; None if the file does not say.
        line: its line in the file, from 1; 0 if it does not come from a file.
    """

    prompt: str
    answer: str
    source: str | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """A sequence of tokens, some of which are to be predicted.

    Attributes:
        ids: all tokens.
        first: the tokens ``ids[first:]`` are predicted, each given all tokens before it; at least 1.
    """

    ids: list[int]
    first: int = 1


def read_pairs(path: Path, limit: int | None = None) -> list[PromptAnswer]:
    """The pairs of a file of JSON lines: ``{"prompt": ..., "answer": ..., "source": ...}``.

    Blank lines and other keys are ignored.

    Args:
        path: the file.
        limit: read only this many; all if None.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, contains no pair, or has a line that is not one.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"--pairs {path}: {why}; give a UTF-8 file, one JSON object per line") from error
    pairs: list[PromptAnswer] = []
    # not splitlines(): it also breaks at characters that JSON allows inside a string
    for number, line in enumerate(text.split("\n"), start=1):
        if len(pairs) == limit:
            break
        if line.strip():
            pairs.append(_pair(line, f"--pairs {path}, line {number}", number))
    if not pairs:
        raise UsageError(f'--pairs {path}: no pairs; write {{"prompt": ..., "answer": ...}}, one per line')
    return pairs


def write_pairs(pairs: Iterable[PromptAnswer], path: Path) -> None:
    """Write the file that :func:`read_pairs` reads."""
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
            raise UsageError(f"{where}: {found}; expected non-empty text")
    source = value.get("source")
    if source is not None and not isinstance(source, str):
        raise UsageError(f"{where}: source is {source!r}; expected text, or no such key")
    return PromptAnswer(value["prompt"], value["answer"], source, number)


def text_items(text: str, encode: Encode, context: int, limit: int | None = None) -> list[Item]:
    """A text in windows of ``likelihood.WINDOW`` tokens, or ``context`` if that is less.

    Every window starts from an empty context, as in ``bitexport parity --text``.

    Raises:
        UsageError: the text has fewer than two tokens.
    """
    found = windows(encode(text, True), min(WINDOW, context))
    return [Item(list(window)) for window in found[:limit]]


def pair_items(pairs: Sequence[PromptAnswer], encode: Encode, end: int, context: int) -> list[Item]:
    """Pairs as tokens: the prompt with the tokenizer's special tokens, the answer without, then ``end``.

    The tokens of the answer and ``end`` are to be predicted.

    Raises:
        UsageError: a prompt has no tokens, or a pair does not fit into ``context`` tokens.
    """
    return [_pair_item(pair, encode, end, context) for pair in pairs]


def _pair_item(pair: PromptAnswer, encode: Encode, end: int, context: int) -> Item:
    if pair.line:
        where = f"--pairs, line {pair.line}"
        remedy = "shorten it, or remove that pair"
    else:
        where = f"--data, the pair {pair.prompt[:40]!r}"
        remedy = "give the run's held_out.jsonl as --pairs: it contains the pairs that fit"
    prompt = encode(pair.prompt, True)
    ids = [*prompt, *encode(pair.answer, False), end]
    if not prompt:
        raise UsageError(f"{where}: the prompt has no tokens; give one that is not empty")
    if len(prompt) >= context:
        raise UsageError(
            f"{where}: the prompt has {len(prompt)} tokens, but the model's context is {context}; {remedy}"
        )
    if len(ids) > context:
        raise UsageError(
            f"{where}: prompt and answer have {len(ids)} tokens, but the model's context is {context}; "
            f"{remedy}"
        )
    return Item(ids, len(prompt))
