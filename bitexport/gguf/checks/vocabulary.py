"""Checks a tokenizer: the kinds that libllama has, and what it relies on in each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from bitexport.gguf.checks.numbers import damaged, shown
from bitexport.gguf.reader import Array, GGUFFile
from bitexport.gguf.strings import Texts

TOKENS = "tokenizer.ggml.tokens"
TYPES = "tokenizer.ggml.token_type"
SCORES = "tokenizer.ggml.scores"
MODEL = "tokenizer.ggml.model"

#: Longer than any token of a published vocabulary; those are runs of a few hundred spaces.
MAX_TOKEN_BYTES = 4096

#: GGUF's numbers for a token that stands for one byte, and the largest of all types.
_BYTE_TYPE = 6
_LAST_TYPE = 6
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-F]{2}>")

#: Keys of special tokens. -1, as int32 or uint32, means that there is none, except for the two tokens for
#: which libllama would then use its own defaults.
_SPECIAL_TOKEN = re.compile(r"tokenizer\.ggml\.\w+_token_id")
_NO_TOKEN = (-1, 2**32 - 1)
_ALWAYS_USED = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")


@dataclass(frozen=True, slots=True)
class Kind:
    """A tokenizer of libllama (``llama_vocab::impl::load`` in llama-vocab.cpp).

    Attributes:
        byte_tokens: tokens of the type for single bytes may exist, and are spelled ``<0x0A>``.
        every_byte: every byte must have a token, because a text's bytes without one become those.
        adds: the special tokens that are added to each text unless the file says otherwise.
        assumed: the ids of special tokens of which the file says nothing.
    """

    byte_tokens: bool = True
    every_byte: bool = False
    adds: tuple[str, ...] = ()
    assumed: Mapping[str, int] = field(default_factory=dict)


_BPE = Kind(assumed={"bos": 11, "eos": 11})

#: By ``tokenizer.ggml.model``.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "gpt2": _BPE,
        "gemma4": Kind(adds=("bos",)),
        "hybriddna": _BPE,
        "whitespace": _BPE,
        "llama": Kind(every_byte=True, adds=("bos",), assumed={"bos": 1, "eos": 2}),
        "bert": Kind(byte_tokens=False, adds=("bos", "seperator"), assumed={"bos": 101, "seperator": 102}),
        "t5": Kind(adds=("eos",), assumed={"eos": 1}),
        "rwkv": Kind(byte_tokens=False),
        "plamo2": Kind(assumed={"bos": 1, "eos": 2}),
    }
)

#: The spelling of this word in keys differs.
_FLAG_OF = {"seperator": "sep"}

#: How the vocabulary of ``rwkv`` spells the end of a line.
_RWKV_LINE_ENDS = (b"\n", b"\\n", b"\\x0a", b"\\x0A")


def check_vocabulary(file: GGUFFile) -> None:
    """Check the tokenizer of a file.

    Raises:
        GGUFError: names the key, its value and what was expected.
    """
    model = file.metadata.get(MODEL)
    if model in ("no_vocab", "none"):
        raise damaged(
            file, f"{MODEL} is '{model}', so it has no tokens; expected a model for text, with a vocabulary"
        )
    if not isinstance(model, str) or model not in KINDS:
        raise damaged(file, f"{MODEL} is {shown(model)}; expected one of {', '.join(KINDS)}")
    kind = KINDS[model]
    tokens = _checked_tokens(file)
    types = _checked_types(file, len(tokens))
    _check_length(file, SCORES, len(tokens))
    _check_bytes(file, kind, model, tokens, types)
    _check_special_tokens(file, len(tokens))
    _check_added_tokens(file, kind, len(tokens))
    if model == "rwkv" and not set(_RWKV_LINE_ENDS) & set(tokens):
        raise damaged(file, f"{TOKENS} has no token for the end of a line, which 'rwkv' needs")


def _checked_tokens(file: GGUFFile) -> Sequence[bytes]:
    """The texts of the tokens: each once, except empty ones, which libllama renames."""
    array = file.metadata.get(TOKENS)
    if not isinstance(array, Array) or array.type != "string" or array.length == 0:
        raise damaged(file, f"{TOKENS} is {shown(array)}; expected an array of strings")
    texts = file.texts(TOKENS)
    _check_texts(file, texts)
    if texts.lengths.all() and texts.surely_differ():
        return texts
    # libllama's name for an empty one
    tokens = [text or b"[EMPTY_%d]" % number for number, text in enumerate(texts)]
    _check_duplicates(file, tokens)
    return tokens


def _check_duplicates(file: GGUFFile, tokens: Sequence[bytes]) -> None:
    ids: dict[bytes, int] = {}
    for number, text in enumerate(tokens):
        first = ids.setdefault(text, number)
        if first != number:
            raise damaged(
                file,
                f"{TOKENS} has {text.decode(errors='replace')!r} twice, with ids {first} and {number}; "
                "expected every text once",
            )


def _check_texts(file: GGUFFile, tokens: Texts) -> None:
    if tokens.lengths.max() > MAX_TOKEN_BYTES:
        number = int(np.argmax(tokens.lengths > MAX_TOKEN_BYTES))
        raise damaged(
            file,
            f"{TOKENS}: token {number} has {len(tokens[number])} bytes; expected at most {MAX_TOKEN_BYTES}",
        )
    if tokens.has_zeros():
        number = next(number for number, text in enumerate(tokens) if b"\0" in text)
        raise damaged(
            file, f"{TOKENS}: token {number} has a byte 0, where libllama would cut it off; expected none"
        )


def _check_length(file: GGUFFile, key: str, expected: int) -> Array | None:
    """Check that a list has an element for each token; libllama only looks for too few."""
    other = file.metadata.get(key)
    if other is None:
        return None
    if not isinstance(other, Array):
        raise damaged(file, f"{key} is {shown(other)}; expected an array")
    if other.length != expected:
        raise damaged(
            file, f"{key} has {other.length} elements; expected one for each of the {expected} tokens"
        )
    return other


def _checked_types(file: GGUFFile, count: int) -> np.ndarray | None:
    array = _check_length(file, TYPES, count)
    if array is None:
        return None
    if array.type != "int32":
        raise damaged(file, f"{TYPES} is an array of {array.type}; expected int32")
    types = np.frombuffer(file.raw(TYPES), "<i4", offset=4 + 4 + 8)
    wrong = np.flatnonzero((types < 0) | (types > _LAST_TYPE))
    if wrong.size:
        number = int(wrong[0])
        raise damaged(file, f"{TYPES}: token {number} has type {types[number]}; expected 0 to {_LAST_TYPE}")
    return types


def _check_bytes(
    file: GGUFFile, kind: Kind, model: str, tokens: Sequence[bytes], types: np.ndarray | None
) -> None:
    """Check tokens for single bytes: libllama reads their value from their text, and looks some up."""
    numbers = np.flatnonzero(types == _BYTE_TYPE).tolist() if types is not None else []
    for number in numbers:
        if not kind.byte_tokens or not _BYTE_TOKEN.fullmatch(tokens[number]):
            expected = "text such as '<0x0A>'" if kind.byte_tokens else f"no such type in '{model}'"
            raise damaged(
                file,
                f"{TYPES}: token {number} {tokens[number].decode(errors='replace')[:40]!r} has type "
                f"{_BYTE_TYPE}, a single byte; expected {expected}",
            )
    if kind.every_byte:
        texts = set(tokens)
        missing = [
            byte for byte in range(256) if b"<0x%02X>" % byte not in texts and bytes([byte]) not in texts
        ]
        if missing:
            raise damaged(
                file,
                f"{TOKENS} has no token '<0x{missing[0]:02X}>', and {len(missing)} bytes without one in all; "
                f"expected one for every byte, because {MODEL} is '{model}'",
            )


def _check_special_tokens(file: GGUFFile, count: int) -> None:
    """Check that special ids are in the vocabulary; libllama would replace others by its own defaults."""
    for key, value in file.metadata.items():
        if not _SPECIAL_TOKEN.fullmatch(key) or not isinstance(value, int):
            continue
        unset = value in _NO_TOKEN and key not in _ALWAYS_USED
        if not 0 <= value < count and not unset:
            raise damaged(
                file, f"{key} is {value}, but the vocabulary has ids 0 to {count - 1}; expected one of them"
            )


def _check_added_tokens(file: GGUFFile, kind: Kind, count: int) -> None:
    """Check that the special tokens exist that libllama adds to each text; it asserts that they do."""
    for name in ("bos", "eos", *kind.adds):
        flag = f"tokenizer.ggml.add_{_FLAG_OF.get(name, name)}_token"
        if not file.metadata.get(flag, name in kind.adds):
            continue
        key = f"tokenizer.ggml.{name}_token_id"
        token = file.metadata.get(key, kind.assumed.get(name))
        if not isinstance(token, int) or not 0 <= token < count:
            found = shown(file.metadata.get(key))
            raise damaged(
                file,
                f"{key} is {found}, but this token is added to each text; expected 0 to {count - 1}",
            )
