"""Does llama.cpp, with the file's vocabulary, tokenize as transformers does? No weights are read."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.reference.model import load_tokenizer
from bitexport.runtime.limits import check_text
from bitexport.runtime.loading import load
from bitexport.runtime.session import piece
from bitexport.tokenizer.compare import encode, first_difference
from bitexport.tokenizer.hard_strings import strings

#: Tokens shown before and after the place where two lists part.
_BEFORE, _AFTER = 3, 7
#: How often the listener is told.
_STRIDE = 50


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text: its id and what it stands for, bytes that are no UTF-8 escaped."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A text that the two sides tokenize differently.

    Attributes:
        what: which text: ``prompt 2``, or ``string 17``.
        text: the text.
        at: the first token that differs.
        python, cpp: the tokens around that place.
        begin: the number of the first of them.
        file_agrees: tokenizer.json, read by itself, gives what C++ gives: it is transformers that differs.
    """

    what: str
    text: str
    at: int
    begin: int
    python: list[Token]
    cpp: list[Token]
    file_agrees: bool

    def advice(self) -> str:
        """What to do, as a clause."""
        if self.file_agrees:
            return (
                "C++ does what tokenizer.json says, transformers does not: if the model was trained with "
                "tokenizer.json, set tokenizer_class in tokenizer_config.json to PreTrainedTokenizerFast"
            )
        if not unicodedata.is_normalized("NFC", self.text):
            return "the text is not in NFC, a form that some tokenizers bring it into and llama.cpp does not"
        return "convert the checkpoint again, or give another --pre-tokenizer to convert"


@dataclass(frozen=True, slots=True)
class TokenizerReport:
    """What :func:`tokenizer_parity` found.

    Attributes:
        strings, prompts: how many texts of either kind were compared.
        tokens: how many tokens they came to in Python.
        mismatches: the texts that differ, in order.
        model, pre: the file's tokenizer and pre-tokenizer, as llama.cpp names them; None where it names none.
    """

    strings: int
    prompts: int
    tokens: int
    mismatches: list[Mismatch]
    model: str | None
    pre: str | None

    @property
    def passed(self) -> bool:
        """Whether every text is tokenized alike."""
        return not self.mismatches

    def describe(self) -> str:
        """The finding as a sentence."""
        kind = f"tokenizer '{self.model}', pre-tokenizer '{self.pre}'"
        texts = f"{self.strings + self.prompts:,} texts"
        if self.passed:
            return f"C++ tokenizes as Python does: {texts}, {self.tokens:,} tokens ({kind})."
        first = self.mismatches[0]
        return (
            f"{len(self.mismatches)} of {texts} are tokenized differently ({kind}), the first is "
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
    """Encode hard strings, every special token in a text, and ``prompts`` on both sides.

    Args:
        checkpoint: folder of the checkpoint, whose tokenizer transformers loads.
        gguf: the file, of which libllama loads the vocabulary alone.
        prompts: more texts, compared first.
        progress: told now and then.

    Raises:
        TokenizerError: transformers cannot load the checkpoint's tokenizer.
        UsageError: a prompt is not text that UTF-8 can hold.
        GGUFError, NativeLibraryError: the file cannot be loaded.
    """
    for number, prompt in enumerate(prompts, start=1):
        check_text(f"prompt {number}", prompt)
    tokenizer = load_tokenizer(Path(checkpoint))
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    hard = strings(special)
    texts = [(f"prompt {number}", text) for number, text in enumerate(prompts, start=1)]
    texts += [(f"string {number}", text) for number, text in enumerate(hard, start=1)]
    described = _described(Path(checkpoint))
    model = load(gguf, vocab_only=True)
    try:
        found = []
        tokens = 0
        for index, (what, text) in enumerate(texts):
            if index % _STRIDE == 0:
                progress(ProgressEvent(index, len(texts), "texts", "tokenizing"))
            ours = list(tokenizer(text, verbose=False)["input_ids"])
            theirs = encode(model, text, True)
            tokens += len(ours)
            if ours != theirs:
                agrees = described is not None and described.encode(text).ids == theirs
                found.append(_mismatch(what, text, ours, theirs, tokenizer, model, agrees))
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


def _described(folder: Path) -> Tokenizer | None:
    """What tokenizer.json itself describes; None where there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _mismatch(
    what: str,
    text: str,
    ours: Sequence[int],
    theirs: Sequence[int],
    tokenizer: Any,
    model: Any,
    file_agrees: bool,
) -> Mismatch:
    at = first_difference(ours, theirs)
    begin, end = max(0, at - _BEFORE), at + _AFTER

    def python_text(number: int) -> str:
        shown = str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
        # part of a character: the vocabulary's own spelling says more than a question mark
        return str(tokenizer.convert_ids_to_tokens(number)) if "\ufffd" in shown or not shown else shown

    def cpp_text(number: int) -> str:
        return piece(model._model.vocab, number).decode("utf-8", "backslashreplace")

    return Mismatch(
        what=what,
        text=text,
        at=at,
        begin=begin,
        python=[Token(number, python_text(number)) for number in ours[begin:end]],
        cpp=[Token(number, cpp_text(number)) for number in theirs[begin:end]],
        file_agrees=file_agrees,
    )


def _short(text: str) -> str:
    shown = ascii(text) if not text.isprintable() else repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}...'"
