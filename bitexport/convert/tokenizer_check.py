"""The last check before a converted file gets its name: llama.cpp must tokenize as the checkpoint does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from bitexport.errors import GGUFError, NativeLibraryError, TokenizerError
from bitexport.tokenizer.compare import encode, first_difference
from bitexport.tokenizer.hard_strings import HARD_STRINGS
from bitexport.tokenizer.panic import panics_named
from bitexport.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llama_cpp import Llama


def check_tokenizer(gguf_path: Path, folder: Path, vocabulary: Vocabulary) -> list[str]:
    """Compare the file's tokenizer with the checkpoint's, if our libllama is built.

    Returns:
        A warning if the check could not run.

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
    """Encode hard strings and special tokens with libllama and with tokenizer.json.

    Raises:
        TokenizerError: libllama cannot load the vocabulary, or a string's ids differ; the message names
            the first such string.
        NativeLibraryError: our libllama is missing.
    """
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    model = _vocabulary_model(gguf_path, vocabulary.pre)
    try:
        for text in (*HARD_STRINGS, *_special_strings(reference)):
            expected = reference.encode(text, add_special_tokens=False).ids
            _check_ids(text, expected, encode(model, text, False), vocabulary)
        _check_special_ids(reference, model)
    finally:
        model.close()


def check_loads(gguf_path: Path, pre: str) -> list[str]:
    """Load a file's vocabulary, if our libllama is built.

    Returns:
        A warning if the check could not run.

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
        # the message names the temporary file, which means nothing to the user
        why = str(error).replace(str(gguf_path), "it").removeprefix("it cannot be loaded: ")
        raise TokenizerError(
            f"llama.cpp refuses the vocabulary (pre-tokenizer '{pre}'): {why}; check --pre-tokenizer"
        ) from error


def _check_special_ids(reference: Tokenizer, model: Llama) -> None:
    """The special tokens around a text: tokenizer.json decides, not the keys that were written."""
    text = HARD_STRINGS[0]
    expected = reference.encode(text, add_special_tokens=True).ids
    got = encode(model, text, True)
    if expected != got:
        raise TokenizerError(
            f"llama.cpp adds other special tokens to a text: {got} for {text!r}, tokenizer.json gives "
            f"{expected}; check its post_processor and the special tokens in tokenizer_config.json"
        )


def _special_strings(reference: Tokenizer) -> list[str]:
    added = reference.get_added_tokens_decoder()
    return [f"text {added[number].content} and text" for number in sorted(added)[:64]]


def _check_ids(text: str, expected: list[int], got: list[int], vocabulary: Vocabulary) -> None:
    if expected == got:
        return
    at = first_difference(expected, got)
    raise TokenizerError(
        f"llama.cpp tokenizes {text!r} differently from token {at} on: {got[at : at + 6]}, tokenizer.json "
        f"gives {expected[at : at + 6]}; pre-tokenizer '{vocabulary.pre}' is not this model's: give another "
        "with --pre-tokenizer"
    )
