"""The prompts that parity runs: the user's, or a built-in set."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

from bitexport.errors import UsageError
from bitexport.system.reading import read_text

_BUILT_IN = "text/built_in_prompts.jsonl"


def built_in_prompts() -> list[str]:
    """Twenty prompts of English prose and Python code, about 100 words each."""
    text = importlib.resources.files("bitexport").joinpath(_BUILT_IN).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file, one per line; blank lines are ignored.

    In a file whose name ends in ``.jsonl``, each line is a JSON string, or a JSON object with ``prompt`` or
    ``text``, so that a prompt can contain line breaks.

    Raises:
        UsageError: the file cannot be read, is not UTF-8, contains no prompt, or has a line that is neither.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UsageError(f"--prompts {path}: {why}; give a UTF-8 text file, one prompt per line") from error
    as_json = path.suffix == ".jsonl"
    prompts = [
        _from_json(line, path, number) if as_json else line
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise UsageError(f"--prompts {path}: no prompt; write one per line")
    return prompts


def _from_json(line: str, path: Path, number: int) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--prompts {path}, line {number}: {error}; expected a JSON string or object"
        ) from error
    if isinstance(value, dict):
        value = value.get("prompt", value.get("text"))
    if not isinstance(value, str) or not value:
        raise UsageError(
            f'--prompts {path}, line {number}: no text in it; expected "TEXT" or {{"prompt": "TEXT"}}'
        )
    return value
