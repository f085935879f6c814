"""The last check before a converted file gets its name: llama.cpp must tokenize as the checkpoint does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import gguf
from tokenizers import Tokenizer

from bitexport.checkpoint.shards import read_json
from bitexport.errors import GGUFError, NativeLibraryError, TokenizerError
from bitexport.tokenizer.compare import encode, first_difference
from bitexport.tokenizer.hard_strings import HARD_STRINGS
from bitexport.tokenizer.metadata import Vocabulary
from bitexport.tokenizer.panic import panics_named
from bitexport.tokenizer.sentencepiece_model import read_sentencepiece
from bitexport.tokenizer.sentencepiece_rule import original_tokenizer

if TYPE_CHECKING:
    from llama_cpp import Llama

#: Types of tokens that are matched in a text before it is split.
ADDED = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)


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
    """Encode hard strings and special tokens with libllama and with the checkpoint's tokenizer.

    That is tokenizer.json, with the rule of the original if transformers 5 has saved it again, or
    tokenizer.model.

    Raises:
        TokenizerError: libllama cannot load the vocabulary, or a string's ids differ; the message names
            the first such string.
        NativeLibraryError: our libllama is missing.
    """
    if not (folder / "tokenizer.json").is_file():
        _verify_sentencepiece(gguf_path, folder, vocabulary)
        return
    reference = original_tokenizer(read_json(folder / "tokenizer.json"))
    model = _vocabulary_model(gguf_path, vocabulary.pre)
    try:
        for text in (*HARD_STRINGS, *_special_strings(reference)):
            expected = reference.encode(text, add_special_tokens=False).ids
            _check_ids(text, expected, encode(model, text, False), vocabulary, "tokenizer.json")
        _check_special_ids(reference, model)
        _check_ends(model, vocabulary)
    finally:
        model.close()


def _verify_sentencepiece(gguf_path: Path, folder: Path, vocabulary: Vocabulary) -> None:
    processor = read_sentencepiece(folder / "tokenizer.model").processor
    model = _vocabulary_model(gguf_path, vocabulary.pre)
    try:
        for text in HARD_STRINGS:
            expected = list(processor.encode(text))
            _check_ids(text, expected, encode(model, text, False), vocabulary, "tokenizer.model")
        for number in range(processor.vocab_size(), len(vocabulary.tokens)):
            token = vocabulary.tokens[number]
            if vocabulary.types[number] in ADDED and number not in encode(model, f"text {token}", False):
                raise TokenizerError(f"llama.cpp does not recognise the added token {token!r} in a text")
        _check_ends(model, vocabulary)
    finally:
        model.close()


def _check_ends(model: Llama, vocabulary: Vocabulary) -> None:
    """llama.cpp must stop at every end of generation that the file can hold."""
    import llama_cpp

    vocab = model._model.vocab
    lost = [number for number in vocabulary.ends if not llama_cpp.llama_vocab_is_eog(vocab, number)]
    if lost:
        raise TokenizerError(
            f"llama.cpp does not stop at the tokens {lost}, which eos_token_id lists: report this as a bug"
        )


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
        return load(gguf_path, trial=False, vocab_only=True)  # we wrote it
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


def _check_ids(text: str, expected: list[int], got: list[int], vocabulary: Vocabulary, source: str) -> None:
    if expected == got:
        return
    at = first_difference(expected, got)
    advice = f"pre-tokenizer '{vocabulary.pre}' is not this model's: give another with --pre-tokenizer"
    if vocabulary.model == "llama":
        advice = "llama.cpp cannot do what this tokenizer does before the merges, so it is not supported"
    raise TokenizerError(
        f"llama.cpp tokenizes {text!r} differently from token {at} on: {got[at : at + 6]}, {source} gives "
        f"{expected[at : at + 6]}; {advice}"
    )
