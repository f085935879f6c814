"""Converts a tokenizer.model, with the files beside it, to GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from bitexport.checkpoint.shards import read_json
from bitexport.errors import CheckpointError, TokenizerError
from bitexport.tokenizer.metadata import Vocabulary
from bitexport.tokenizer.sentencepiece_model import read_sentencepiece
from bitexport.tokenizer.settings import (
    all_ends,
    check_chat_template,
    read_settings,
    remote_code_warning,
    special_vocabulary,
    too_long,
)

#: The text of padding, and the scores of padding and of added tokens, as in llama.cpp's converter.
PADDING = "[PAD{id}]"
PADDING_SCORE = -10000.0
ADDED_SCORE = -1000.0

USER_DEFINED = int(gguf.TokenType.USER_DEFINED)


def sentencepiece_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """The tokenizer in tokenizer.model, as llama.cpp's converter writes it.

    Args:
        folder: the checkpoint.
        vocab_size: how many embeddings the model has; a shorter vocabulary is padded with unused tokens.

    Raises:
        TokenizerError: see :func:`read_sentencepiece`; or it is longer than ``vocab_size``.
    """
    model = read_sentencepiece(folder / "tokenizer.model")
    try:
        settings = read_settings(folder / "tokenizer_config.json")
        added = _added_to_sentencepiece(folder, settings)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    warnings = remote_code_warning(settings)
    top = max((len(model.pieces) - 1, *added))
    if top >= vocab_size:
        raise too_long(top, vocab_size)
    if settings.get("add_prefix_space") is False and model.add_space_prefix:
        raise TokenizerError(
            "tokenizer_config.json says add_prefix_space false, but tokenizer.model adds a space; expected "
            "the same in both: save a tokenizer.json with AutoTokenizer"
        )
    defined = [p for p, kind in zip(model.pieces, model.types, strict=True) if kind == USER_DEFINED]
    if defined and model.add_space_prefix:
        warnings.append(
            f"tokenizer.model has {len(defined)} user-defined tokens, such as {defined[0]!r}: llama.cpp puts "
            "a space behind them, sentencepiece does not"
        )
    padding = range(len(model.pieces), vocab_size)
    tokens = [*model.pieces, *(PADDING.format(id=number) for number in padding)]
    scores = [*model.scores, *(PADDING_SCORE for _ in padding)]
    types = [*model.types, *(int(gguf.TokenType.UNUSED) for _ in padding)]
    for number, (text, kind) in added.items():
        tokens[number], scores[number], types[number] = text, ADDED_SCORE, int(kind)
    special = special_vocabulary(folder, vocab_size, warnings)
    roles = model.special_ids() | special.special_token_ids
    for role in ("bos", "eos", "unk", "sep", "pad", "mask"):
        entry = settings.get(f"{role}_token")
        name = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(name, str) and name in tokens:
            roles[role] = tokens.index(name)
    ends = all_ends(folder, roles, tokens, warnings)
    check_chat_template(special.chat_template)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        merges=[],
        scores=scores,
        special=roles,
        # the defaults are those of LlamaTokenizer
        add_bos=settings.get("add_bos_token") is not False and "bos" in roles,
        add_eos=bool(settings.get("add_eos_token")) and "eos" in roles,
        add_space_prefix=model.add_space_prefix,
        chat_template=special.chat_template,
        padded=types.count(int(gguf.TokenType.UNUSED)) - model.types.count(int(gguf.TokenType.UNUSED)),
        warnings=tuple(warnings),
        ends=ends,
    )


def _added_to_sentencepiece(
    folder: Path, settings: Mapping[str, Any]
) -> dict[int, tuple[str, gguf.TokenType]]:
    """Texts and types by id of the tokens that other files add to tokenizer.model.

    Raises:
        CheckpointError: added_tokens.json or added_tokens_decoder is damaged.
    """
    found: dict[int, tuple[str, gguf.TokenType]] = {}
    path = folder / "added_tokens.json"
    entries: list[tuple[Any, Any, bool]] = [
        (text, number, False) for text, number in (read_json(path) if path.is_file() else {}).items()
    ]
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError(
            f"tokenizer_config.json: added_tokens_decoder is {decoder!r}; expected an object"
        )
    for number, entry in decoder.items():
        entry = entry if isinstance(entry, dict) else {}
        value = int(number) if number.isdecimal() else None
        entries.append((entry.get("content"), value, bool(entry.get("special"))))
    for text, number, special in entries:
        if not isinstance(text, str) or not isinstance(number, int) or number < 0:
            raise CheckpointError(
                f"{folder}: an added token with text {text!r} and id {number!r}; expected text and a number: "
                "download added_tokens.json and tokenizer_config.json again"
            )
        kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        found[number] = (text, kind)
    return found
