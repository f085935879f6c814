"""Does llama.cpp, with the file's vocabulary, tokenize as transformers does?"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bitexport.checkpoint.shards import read_json
from bitexport.errors import TokenizerError
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference.model import Reference, load_tokenizer
from bitexport.runtime.limits import check_text
from bitexport.runtime.loading import load
from bitexport.runtime.pieces import piece
from bitexport.runtime.session import Session
from bitexport.tokenizer.compare import encode, first_difference
from bitexport.tokenizer.hard_strings import strings
from bitexport.tokenizer.sentencepiece_rule import (
    SPACES_DIFFER,
    original_tokenizer,
    saved_again,
)

#: Tokens shown before the first difference, and from it on.
_BEFORE, _AFTER = 3, 7
#: Texts between two progress events.
_PROGRESS_STRIDE = 50


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A token's id and its text, in which bytes that are not UTF-8 are escaped."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A text that the two sides tokenize differently.

    Attributes:
        what: the name of the text: ``prompt 2`` or ``string 17``.
        text: the text.
        at: index of the first token that differs.
        begin: index of the first token in ``python`` and ``cpp``.
        python, cpp: the tokens around the difference.
        file_agrees: tokenizer.json alone tokenizes the text as C++ does, so transformers is the one that
            differs.
        harmless: the difference is the one that transformers 5 makes in front of texts that begin with a
            space, see :mod:`bitexport.tokenizer.sentencepiece_rule`. C++ follows the original rule.
    """

    what: str
    text: str
    at: int
    begin: int
    python: list[TokenPiece]
    cpp: list[TokenPiece]
    file_agrees: bool
    harmless: bool

    def advice(self) -> str:
        """What to do about it, as a clause."""
        if self.file_agrees:
            return (
                "C++ does what tokenizer.json says, transformers does not: if the model was trained with "
                "tokenizer.json, set tokenizer_class in tokenizer_config.json to PreTrainedTokenizerFast"
            )
        if not unicodedata.is_normalized("NFC", self.text):
            return "the text is not in NFC; some tokenizers normalize it to NFC, llama.cpp does not"
        return "convert the checkpoint again, if necessary with another --pre-tokenizer"


@dataclass(frozen=True, slots=True)
class TokenizerReport:
    """The result of :func:`tokenizer_parity`.

    Attributes:
        strings, prompts: number of texts of each kind compared.
        tokens: number of tokens in all texts, as tokenized in Python.
        mismatches: the texts that differ, in order, those first that are not harmless.
        model, pre: llama.cpp's names for the file's tokenizer and pre-tokenizer; None if the file has none.
    """

    strings: int
    prompts: int
    tokens: int
    mismatches: list[Mismatch]
    model: str | None
    pre: str | None

    @property
    def passed(self) -> bool:
        """Whether every text is tokenized alike, apart from harmless differences."""
        return all(mismatch.harmless for mismatch in self.mismatches)

    def describe(self) -> str:
        """The finding as a sentence."""
        kind = f"tokenizer '{self.model}', pre-tokenizer '{self.pre}'"
        texts = f"{self.strings + self.prompts:,} texts"
        if self.passed and self.mismatches:
            return (
                f"C++ tokenizes as the checkpoint's original tokenizer does: {texts}, {self.tokens:,} tokens "
                f"({kind}). PyTorch's side differs in {len(self.mismatches)} of them, which is harmless: "
                f"{SPACES_DIFFER}."
            )
        if self.passed:
            return f"C++ tokenizes as Python does: {texts}, {self.tokens:,} tokens ({kind})."
        first = self.mismatches[0]  # a harmful one
        return (
            f"{len(self.mismatches)} of {texts} are tokenized differently ({kind}); the first is "
            f"{first.what}, {_short(first.text)}, from token {first.at} on; {first.advice()}."
        )

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {"passed": self.passed, "verdict": self.describe(), **asdict(self)}


def tokenizer_parity(
    checkpoint: str | os.PathLike[str],
    gguf: str | os.PathLike[str],
    prompts: Sequence[str] = (),
    *,
    progress: Progress = ignore,
) -> TokenizerReport:
    """Tokenize hard strings, every special token inside a text, and ``prompts`` on both sides.

    Args:
        checkpoint: folder of the checkpoint, whose tokenizer transformers loads.
        gguf: the file; libllama loads only its vocabulary, no weights.
        prompts: more texts, compared first.
        progress: called every 50 texts.

    Raises:
        TokenizerError: transformers cannot load the checkpoint's tokenizer.
        UsageError: a prompt cannot be encoded as UTF-8.
        GGUFError, NativeLibraryError: the file cannot be loaded.
    """
    for number, prompt in enumerate(prompts, start=1):
        check_text(f"prompt {number}", prompt)
    tokenizer = load_tokenizer(Path(checkpoint))
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    hard = strings(special)
    texts = [(f"prompt {number}", text) for number, text in enumerate(prompts, start=1)]
    texts += [(f"string {number}", text) for number, text in enumerate(hard, start=1)]
    from_file = _tokenizer_json(Path(checkpoint))
    original = _with_original_spaces(tokenizer)
    model = load(gguf, vocab_only=True)
    try:
        found = []
        tokens = 0
        for index, (what, text) in enumerate(texts):
            if index % _PROGRESS_STRIDE == 0:
                progress(ProgressEvent(index, len(texts), "texts", "tokenizing"))
            python_ids = list(tokenizer(text, verbose=False)["input_ids"])
            cpp_ids = encode(model, text, True)
            tokens += len(python_ids)
            if python_ids != cpp_ids:
                agrees = from_file is not None and from_file.encode(text).ids == cpp_ids
                harmless = original is not None and original.encode(text).ids == cpp_ids
                found.append(_mismatch(what, text, python_ids, cpp_ids, tokenizer, model, agrees, harmless))
        found.sort(key=lambda mismatch: mismatch.harmless)
        return TokenizerReport(
            strings=len(hard),
            prompts=len(prompts),
            tokens=tokens,
            mismatches=found,
            model=model.metadata.get("tokenizer.ggml.model"),
            pre=model.metadata.get("tokenizer.ggml.pre"),
        )
    finally:
        model.close()


def check_same_tokens(
    reference: Reference, session: Session, what: str, text: str, python_ids: Sequence[int]
) -> None:
    """Check that C++ tokenizes ``text`` to ``python_ids``, apart from a harmless difference.

    Raises:
        TokenizerError: it does not; the message begins with ``what`` and names the first token that differs.
    """
    cpp_ids = session.tokenize(text)
    if list(python_ids) == cpp_ids:
        return
    original = _with_original_spaces(reference.tokenizer)
    if original is not None and original.encode(text).ids == cpp_ids:
        return
    at = first_difference(python_ids, cpp_ids)

    def name(ids: Sequence[int]) -> str:
        return f"{ids[at]} ({reference.text([ids[at]])!r})" if at < len(ids) else "absent"

    raise TokenizerError(
        f"{what} is tokenized differently: token {at} is {name(python_ids)} in Python and {name(cpp_ids)} "
        "in C++; the GGUF has a different tokenizer or pre-tokenizer: convert the checkpoint again"
    )


def _tokenizer_json(folder: Path) -> Tokenizer | None:
    """The tokenizer of tokenizer.json, with the rule of the original; None if there is no such file."""
    path = folder / "tokenizer.json"
    return original_tokenizer(read_json(path)) if path.is_file() else None


def _with_original_spaces(tokenizer: Any) -> Tokenizer | None:
    """transformers' tokenizer with the original rule for spaces; None if it has that rule."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not saved_again(description := json.loads(backend.to_str())):
        return None
    return original_tokenizer(description)


def _mismatch(
    what: str,
    text: str,
    python_ids: Sequence[int],
    cpp_ids: Sequence[int],
    tokenizer: Any,
    model: Any,
    file_agrees: bool,
    harmless: bool,
) -> Mismatch:
    at = first_difference(python_ids, cpp_ids)
    begin, end = max(0, at - _BEFORE), at + _AFTER

    def python_text(number: int) -> str:
        shown = str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
        # for part of a character, the vocabulary's spelling says more than a replacement character
        return str(tokenizer.convert_ids_to_tokens(number)) if "\ufffd" in shown or not shown else shown

    def cpp_text(number: int) -> str:
        return piece(model._model.vocab, number).decode("utf-8", "backslashreplace")

    return Mismatch(
        what=what,
        text=text,
        at=at,
        begin=begin,
        python=[TokenPiece(number, python_text(number)) for number in python_ids[begin:end]],
        cpp=[TokenPiece(number, cpp_text(number)) for number in cpp_ids[begin:end]],
        file_agrees=file_agrees,
        harmless=harmless,
    )


def _short(text: str) -> str:
    shown = ascii(text) if not text.isprintable() else repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}...'"
