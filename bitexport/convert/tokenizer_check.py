"""The last check before a converted file gets its name: llama.cpp must tokenize as the checkpoint does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from bitexport.errors import GGUFError, NativeLibraryError, TokenizerError
from bitexport.tokenizer.hard_strings import HARD_STRINGS
from bitexport.tokenizer.panic import panics_named
from bitexport.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llama_cpp import Llama


def check_tokenizer(gguf_path: Path, folder: Path, vocabulary: Vocabulary) -> list[str]:
    """Compare both sides where our libllama is built.

    Returns:
        Warnings: that the check could not be made.

    Raises:
        TokenizerError: see :func:`verify_tokenizer`.
    """
    try:
        verify_tokenizer(gguf_path, folder, vocabulary)
    except NativeLibraryError as error:
        return [f"the tokenizer was not checked against llama.cpp: {error}"]
    return []


@panics_named()
def verify_tokenizer(gguf_path: Path, folder: Path, vocabulary: Vocabulary) -> None:
    """Encode hard strings, and every special token, with libllama and with tokenizer.json.

    Raises:
        TokenizerError: libllama cannot load the vocabulary, or a string's ids differ; names the first such
            string.
        NativeLibraryError: there is no libllama of ours.
    """
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    model = _vocabulary_model(gguf_path, vocabulary.pre)
    try:
        for text in (*HARD_STRINGS, *_special_strings(reference)):
            expected = reference.encode(text, add_special_tokens=False).ids
            _compare(text, expected, encode(model, text, False), vocabulary)
        _compare_ends(reference, model)
    finally:
        model.close()


def check_loads(gguf_path: Path, pre: str) -> list[str]:
    """Load a file's vocabulary where our libllama is built.

    Returns:
        Warnings: that the check could not be made.

    Raises:
        TokenizerError: libllama cannot load it; ``pre`` is the pre-tokenizer that it names.
    """
    try:
        _vocabulary_model(gguf_path, pre).close()
    except NativeLibraryError as error:
        return [f"the pre-tokenizer was not checked against llama.cpp: {error}"]
    return []


def _vocabulary_model(gguf_path: Path, pre: str) -> Llama:
    from bitexport.runtime.loading import load

    try:
        return load(gguf_path, vocab_only=True)
    except GGUFError as error:
        # the message names the temporary file, of which the user knows nothing
        why = str(error).replace(str(gguf_path), "it").removeprefix("it cannot be loaded: ")
        raise TokenizerError(
            f"llama.cpp refuses the vocabulary (pre-tokenizer '{pre}'): {why}; check --pre-tokenizer"
        ) from error


def _compare_ends(reference: Tokenizer, model: Llama) -> None:
    """What goes around a text, by what tokenizer.json does and not by what was written."""
    text = HARD_STRINGS[0]
    expected = reference.encode(text, add_special_tokens=True).ids
    got = encode(model, text, True)
    if expected != got:
        raise TokenizerError(
            f"llama.cpp puts other tokens around a text: {got} for {text!r}, tokenizer.json gives {expected};"
            " check its post_processor and the special tokens in tokenizer_config.json"
        )


def _special_strings(reference: Tokenizer) -> list[str]:
    added = reference.get_added_tokens_decoder()
    return [f"text {added[number].content} and text" for number in sorted(added)[:64]]


def encode(model: Llama, text: str, add_special: bool) -> list[int]:
    """llama.cpp's ids of ``text``, special tokens in it recognised; ``add_special``: and put around it."""
    return list(model.tokenize(text.encode("utf-8"), add_bos=add_special, special=True))


def first_difference(expected: Sequence[int], got: Sequence[int]) -> int:
    """The first place where two lists of ids differ; the length of the shorter one where it only ends."""
    pairs = zip(expected, got, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(got)))


def _compare(text: str, expected: list[int], got: list[int], vocabulary: Vocabulary) -> None:
    if expected == got:
        return
    at = first_difference(expected, got)
    raise TokenizerError(
        f"llama.cpp tokenizes {text!r} differently from token {at} on: {got[at : at + 6]}, tokenizer.json "
        "gives "
        f"{expected[at : at + 6]}; pre-tokenizer '{vocabulary.pre}' is not this model's: give another with "
        "--pre-tokenizer"
    )
