"""Tries a tokenizer.json in a process of its own before anything else uses it.

The tokenizers library does whatever the file says: a post-processor may add 10^8 tokens, a normalizer double
a text forty times, and a regular expression make it panic, which prints many lines on stderr.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from bitexport.errors import TokenizerError
from bitexport.system.limited import LimitError, answer, deadline, run_limited
from bitexport.tokenizer.hard_strings import HARD_STRINGS, STRANGE_STRINGS

#: Memory beyond a multiple of the file's size, and time. A tokenizer of 16 MB, 256,000 tokens, takes 0.9 s.
MAX_BYTES = 1 << 30
MAX_BYTES_PER_BYTE = 16
MAX_SECONDS = 30.0

#: Time for all texts together, which take some milliseconds.
MAX_ENCODING_SECONDS = 3.0

#: A byte becomes one token, a space up to three (the bytes of U+2581), and some are added around a text.
MAX_PER_BYTE = 4
MAX_ADDED = 100


def check_tokenizer_json(folder: Path) -> None:
    """Encode some texts with a folder's tokenizer.json, if there is one, in a process of its own.

    Raises:
        TokenizerError: the tokenizers library refuses the file or panics, or the file takes too much memory
            or time, or makes far more tokens of a text than there can be.
    """
    path = folder / "tokenizer.json"
    try:
        found = path.stat()
    except OSError:
        return
    problem = _problem(str(path.resolve()), found.st_mtime_ns, found.st_size)
    if problem:
        raise TokenizerError(f"tokenizer.json: {problem}; download it again")


@functools.lru_cache(maxsize=64)
def _problem(path: str, _changed: int, size: int) -> str:
    """What is wrong with a tokenizer.json; empty if nothing is."""
    memory = MAX_BYTES + MAX_BYTES_PER_BYTE * size
    try:
        return str(run_limited(__name__, path, memory=memory, seconds=MAX_SECONDS))
    except LimitError as error:
        if error.time:
            return "takes too long to load or to encode a few short texts"
        return f"the tokenizer {error}"


def main(memory: str, seconds: str, path: str) -> None:
    """In the process: print what is wrong with the file, as JSON."""
    from tokenizers import Tokenizer

    answer(memory, seconds, lambda: _try(Tokenizer, path))


def _try(kind: Any, path: str) -> str:
    try:
        tokenizer = kind.from_file(path)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        deadline(MAX_ENCODING_SECONDS)
        for text in ("a", *HARD_STRINGS, *STRANGE_STRINGS, *_recognition()):
            count = len(tokenizer.encode(text))
            most = MAX_PER_BYTE * len(text.encode("utf-8", "replace")) + MAX_ADDED
            if count > most:
                return f"makes {count} tokens of {json.dumps(text[:20])}; expected at most {most}"
    except Exception as error:  # tokenizers raises plain Exception for anything it cannot read
        return f"not a tokenizer ({' '.join(str(error).split())[:500]})"
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return f"the tokenizers library panicked ({' '.join(str(error).split())[:500]})"
    return ""


def _recognition() -> list[str]:
    from bitexport.tokenizer.pre_tokenizer import recognition_text

    text = recognition_text()
    return [] if text is None else [text]
