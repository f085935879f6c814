"""Converts a checkpoint's tokenizer, from tokenizer.json and tokenizer_config.json, to GGUF metadata.

A tokenizer.model is read if there is no tokenizer.json.

Of llama.cpp's kinds of tokenizers, two are supported: ``gpt2``, byte-level BPE, and ``llama``,
SentencePiece-like BPE with byte fallback. Any other kind is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

from bitexport.checkpoint.folders import check_files
from bitexport.checkpoint.shards import read_json
from bitexport.errors import CheckpointError, TokenizerError
from bitexport.tokenizer import pre_tokenizer
from bitexport.tokenizer.metadata import Vocabulary
from bitexport.tokenizer.panic import panics_named
from bitexport.tokenizer.sentencepiece_rule import (
    SPACES_DIFFER,
    byte_types,
    is_like_sentencepiece,
    merge_scores,
    saved_again,
    space_prefix,
)
from bitexport.tokenizer.sentencepiece_vocabulary import PADDING, sentencepiece_vocabulary
from bitexport.tokenizer.settings import (
    all_ends,
    check_chat_template,
    read_settings,
    remote_code_warning,
    special_vocabulary,
    too_long,
)
from bitexport.tokenizer.trial import check_tokenizer_json

__all__ = ["Vocabulary", "read_vocabulary"]


@panics_named()
def read_vocabulary(folder: Path, vocab_size: int, given_pre: str | None = None) -> Vocabulary:
    """Read a checkpoint's tokenizer.

    Args:
        folder: the checkpoint.
        vocab_size: how many embeddings the model has; a shorter vocabulary is padded with unused tokens.
        given_pre: the name of the pre-tokenizer given by the user.

    Raises:
        TokenizerError: it is missing, damaged, of an unsupported kind, or longer than ``vocab_size``.
    """
    try:
        check_files(folder)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
        return sentencepiece_vocabulary(folder, vocab_size)
    description, tokenizer, settings = _open(folder)
    warnings = remote_code_warning(settings)
    special = special_vocabulary(folder, vocab_size, warnings)
    tokens, types, padded = _tokens(tokenizer, vocab_size)
    model = description.get("model") or {}
    if model.get("type") != "BPE":
        raise TokenizerError(
            f"tokenizer.json: the tokenizer has type {model.get('type')!r}; expected BPE, as other types are "
            "not supported"
        )
    if is_like_sentencepiece(description):
        kind = "llama"
        pre = "default"
        merges = []
        scores = merge_scores(tokens, special.merges)
        types = byte_types(tokens, types, special.special_token_ids.get("unk"))
        prefix: bool | None = space_prefix(description)
        if saved_again(description):
            warnings.append(
                f"tokenizer.json was saved again by transformers 5: {SPACES_DIFFER}; llama.cpp adds it, as "
                "the original tokenizer does"
            )
    else:
        _check_byte_level(description, warnings)
        kind = "gpt2"
        pre = pre_tokenizer.name_of(tokenizer, description, given_pre)
        merges = special.merges
        scores = []
        prefix = None
    add_bos, add_eos = _added_ends(tokenizer, special.special_token_ids, settings, warnings)
    ends = all_ends(folder, special.special_token_ids, tokens, warnings)
    check_chat_template(special.chat_template)
    return Vocabulary(
        model=kind,
        pre=pre,
        tokens=tokens,
        types=types,
        merges=merges,
        scores=scores,
        special=special.special_token_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=prefix,
        chat_template=special.chat_template,
        padded=padded,
        warnings=tuple(warnings),
        ends=ends,
    )


def _open(folder: Path) -> tuple[dict[str, Any], Tokenizer, dict[str, Any]]:
    """tokenizer.json as a document and as a tokenizer, and tokenizer_config.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{folder}: no tokenizer.json or tokenizer.model; save it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    check_tokenizer_json(folder)
    try:
        description = read_json(path)
        tokenizer = Tokenizer.from_file(str(path))
        settings = read_settings(folder / "tokenizer_config.json")
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    except Exception as error:  # tokenizers raises plain Exception for anything it cannot read
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{path.name}: not a tokenizer ({reason}); download it again") from error
    # settings saved by a training run, which transformers ignores as well
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return description, tokenizer, settings


def _tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int], int]:
    """Texts and types of all ids, and the number of ids that were padded."""
    by_id = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    top = max(by_id, default=-1)
    if top < 0:
        raise TokenizerError("tokenizer.json has an empty vocabulary; expected the model's tokenizer")
    if top >= vocab_size:
        raise too_long(top, vocab_size)
    added = tokenizer.get_added_tokens_decoder()
    known = set(by_id.values())
    tokens: list[str] = []
    types: list[int] = []
    for number in range(vocab_size):
        if number not in by_id:
            filler = PADDING.format(id=number)
            tokens.append(filler if filler not in known else f"[PAD{number}]_unused")
            types.append(gguf.TokenType.UNUSED)
        else:
            tokens.append(by_id[number])
            kind = gguf.TokenType.NORMAL
            if number in added:
                kind = gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED
            types.append(kind)
    return tokens, [int(kind) for kind in types], vocab_size - len(by_id)


def _check_byte_level(description: Mapping[str, Any], warnings: list[str]) -> None:
    """Check that llama.cpp's ``gpt2`` tokenizer, which does not normalize text, is equivalent."""
    normalizer = description.get("normalizer")
    if normalizer is not None and not isinstance(normalizer, dict):
        raise TokenizerError(
            f"tokenizer.json: normalizer is {normalizer!r}; expected an object or null: download it again"
        )
    if normalizer is None or (normalizer.get("type") == "Sequence" and not normalizer.get("normalizers")):
        return
    if normalizer.get("type") == "NFC":
        warnings.append(
            "the tokenizer normalizes text to NFC, but llama.cpp does not: text in other forms gets other "
            "tokens"
        )
        return
    raise TokenizerError(
        f"tokenizer.json normalizes text ({normalizer.get('type')}), which llama.cpp's byte-level BPE does "
        "not; expected no normalizer, or NFC"
    )


def _added_ends(
    tokenizer: Tokenizer, special: dict[str, int], settings: Mapping[str, Any], warnings: list[str]
) -> tuple[bool, bool]:
    """Whether encoding a text adds bos and eos; their ids are put into ``special``.

    Only tokenizer.json decides: if there is one, transformers 5 ignores ``add_bos_token``.
    """
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    ends = next(
        (
            (full[:at], full[at + len(bare) :])
            for at in range(len(full) - len(bare) + 1)
            if full[at : at + len(bare)] == bare
        ),
        (full, []),
    )
    if max(map(len, ends)) > 1:
        raise TokenizerError(
            f"tokenizer.json adds more than one token around a text (ids {full} for 'a'); expected at most "
            "one in front and one behind, as llama.cpp adds no more: correct its post_processor"
        )
    for role, added in zip(("bos", "eos"), ends, strict=True):
        setting = settings.get(f"add_{role}_token")
        if setting is not None and setting != bool(added):
            warnings.append(
                f"tokenizer_config.json says add_{role}_token {setting}, but tokenizer.json "
                f"{'adds' if added else 'does not add'} one; tokenizer.json is followed, as in transformers"
            )
        if added and special.get(role) != added[0]:
            if role in special:
                warnings.append(
                    f"tokenizer.json adds token {added[0]} where {role}_token is {special[role]}: "
                    f"{added[0]} is written as {role}, so that the ids are the same"
                )
            special[role] = added[0]
    return bool(ends[0]), bool(ends[1])
