"""Converts a checkpoint's tokenizer, from tokenizer.json and tokenizer_config.json, to GGUF metadata.

Of llama.cpp's kinds of tokenizers, two are supported: ``gpt2``, byte-level BPE, and ``llama``,
SentencePiece-like BPE with byte fallback. Any other kind is an error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

from bitexport.checkpoint.shards import read_json
from bitexport.errors import CheckpointError, TokenizerError
from bitexport.gguf.writer import MetadataValue
from bitexport.tokenizer import pre_tokenizer
from bitexport.tokenizer.panic import panics_named

#: The tokens that pad the vocabulary to the model's size, named as in llama.cpp's converter.
PADDING = "[PAD{id}]"

#: The score of tokens that are not the result of a merge.
UNMERGED_SCORE = -1000000.0


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        model: ``gpt2`` or ``llama``.
        pre: the pre-tokenizer's name.
        tokens: the text of each id, as many as the model has embeddings.
        types: ``gguf.TokenType`` of each id.
        merges: pairs joined by a space, best first (``gpt2``).
        scores: the score of each id (``llama``).
        special: ids by role: bos, eos, eot, unk, sep, pad, mask.
        add_bos, add_eos: whether encoding a text adds them, as tokenizer.json does.
        add_space_prefix: whether a space is added in front of the text (``llama``).
        chat_template: the template, or a list of named ones.
        padded: how many ids have no token in the tokenizer.
        warnings: messages for the user.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    chat_template: Any
    padded: int
    warnings: tuple[str, ...] = field(default=())

    def metadata(self) -> dict[str, MetadataValue]:
        """The GGUF keys. Always has ``add_bos_token``: llama.cpp's default depends on the pre-tokenizer."""
        found: dict[str, MetadataValue] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
        }
        if self.scores:
            found["tokenizer.ggml.scores"] = self.scores
        if self.merges:
            found["tokenizer.ggml.merges"] = self.merges
        names = {
            "bos": "bos",
            "eos": "eos",
            "eot": "eot",
            "unk": "unknown",
            "sep": "seperator",
            "pad": "padding",
            "mask": "mask",
        }
        for role, key in names.items():
            if role in self.special:
                found[f"tokenizer.ggml.{key}_token_id"] = self.special[role]
        found["tokenizer.ggml.add_bos_token"] = self.add_bos
        found["tokenizer.ggml.add_eos_token"] = self.add_eos
        if self.add_space_prefix is not None:
            found["tokenizer.ggml.add_space_prefix"] = self.add_space_prefix
        if isinstance(self.chat_template, str):
            found["tokenizer.chat_template"] = self.chat_template
        elif isinstance(self.chat_template, list):
            found.update(_named_templates(self.chat_template))
        return found


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
    description, tokenizer, settings = _open(folder)
    warnings: list[str] = []
    special = _special_vocabulary(folder, vocab_size, warnings)
    tokens, types, padded = _tokens(tokenizer, vocab_size)
    model = description.get("model") or {}
    if model.get("type") != "BPE":
        raise TokenizerError(
            f"tokenizer.json: the tokenizer has type {model.get('type')!r}; expected BPE, as other types are "
            "not supported"
        )
    if model.get("byte_fallback"):
        kind = "llama"
        pre = "default"
        merges = []
        scores = _scores(tokens, special.merges)
        types = _byte_types(tokens, types, special.special_token_ids.get("unk"))
        space_prefix: bool | None = _space_prefix(description)
    else:
        _check_byte_level(description, warnings)
        kind = "gpt2"
        pre = pre_tokenizer.name_of(tokenizer, description, given_pre)
        merges = special.merges
        scores = []
        space_prefix = None
    add_bos, add_eos = _added_ends(tokenizer, special.special_token_ids, settings, warnings)
    _check_encodable(special.chat_template)
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
        add_space_prefix=space_prefix,
        chat_template=special.chat_template,
        padded=padded,
        warnings=tuple(warnings),
    )


def _open(folder: Path) -> tuple[dict[str, Any], Tokenizer, dict[str, Any]]:
    """tokenizer.json as a document and as a tokenizer, and tokenizer_config.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        hint = " (tokenizer.model alone is not read)" if (folder / "tokenizer.model").is_file() else ""
        raise TokenizerError(
            f"{folder}: no tokenizer.json{hint}; save it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        description = read_json(path)
        tokenizer = Tokenizer.from_file(str(path))
        settings = _settings(folder / "tokenizer_config.json")
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
    except Exception as error:  # tokenizers raises plain Exception for anything it cannot read
        reason = " ".join(str(error).split())
        raise TokenizerError(f"{path.name}: not a tokenizer ({reason}); download it again") from error
    # settings saved by a training run, which transformers ignores as well
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return description, tokenizer, settings


def _settings(path: Path) -> dict[str, Any]:
    """tokenizer_config.json; empty if there is none.

    Raises:
        CheckpointError: it is not a JSON object, or add_bos_token or add_eos_token is not a boolean.
    """
    if not path.exists():
        return {}
    settings = read_json(path)
    for key in ("add_bos_token", "add_eos_token"):
        if not isinstance(settings.get(key), bool | None):
            raise CheckpointError(
                f"{path.name}: {key} is {settings[key]!r}; expected true, false or null: correct it"
            )
    return settings


def _special_vocabulary(folder: Path, vocab_size: int, warnings: list[str]) -> gguf.SpecialVocab:
    """Merges, special ids and chat template; warnings of the gguf package are appended to ``warnings``."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # decoders do not encode pairs of texts, and _added_ends determines bos and eos of a single text
            if "TemplateProcessing" not in record.getMessage():
                warnings.append(f"tokenizer: {record.getMessage()}")

    logger, collector = logging.getLogger("gguf.vocab"), Collector(logging.WARNING)
    propagated = logger.propagate
    logger.addHandler(collector)
    logger.propagate = False
    try:
        return gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocab_size)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise TokenizerError(
            f"{folder}: tokenizer_config.json, tokenizer.json or the chat template cannot be read "
            f"({error}); download them again"
        ) from error
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagated


def _tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], list[int], int]:
    """Texts and types of all ids, and the number of ids that were padded."""
    by_id = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    top = max(by_id, default=-1)
    if top < 0:
        raise TokenizerError("tokenizer.json has an empty vocabulary; expected the model's tokenizer")
    if top >= vocab_size:
        raise TokenizerError(
            f"the tokenizer has ids up to {top}, but the model has {vocab_size} embeddings (vocab_size); "
            "the tokenizer belongs to another model, or the embeddings were not resized: check both"
        )
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


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """The score of each token; llama.cpp merges the pair whose result has the best score first."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), index)
    return [-float(rank[token]) if token in rank else UNMERGED_SCORE for token in tokens]


def _byte_types(tokens: list[str], types: list[int], unknown: int | None) -> list[int]:
    found = list(types)
    byte_tokens = {f"<0x{value:02X}>" for value in range(256)}
    for number, token in enumerate(tokens):
        if token in byte_tokens:
            found[number] = int(gguf.TokenType.BYTE)
    if unknown is not None:
        found[unknown] = int(gguf.TokenType.UNKNOWN)
    return found


def _space_prefix(description: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece-like tokenizer adds a space in front of the text."""

    def steps(part: Any, key: str) -> list[Mapping[str, Any]]:
        if not isinstance(part, dict):
            return []
        return list(part.get(key, [])) if part.get("type") == "Sequence" else [part]

    normalizers = steps(description.get("normalizer"), "normalizers")
    splitters = steps(description.get("pre_tokenizer"), "pretokenizers")
    prepended = any(step.get("type") == "Prepend" for step in normalizers)
    metaspace = any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in splitters
    )
    return prepended or metaspace


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


def _check_encodable(template: Any) -> None:
    """Raise TokenizerError if a chat template contains a lone surrogate, which UTF-8 cannot encode."""
    try:
        json.dumps(template, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the chat template contains a lone surrogate ({error.object[error.start : error.end]!r}); "
            "expected UTF-8: correct tokenizer_config.json"
        ) from error


def _named_templates(templates: list[Any]) -> dict[str, MetadataValue]:
    named = {
        entry["name"]: entry["template"]
        for entry in templates
        if isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
    }
    found: dict[str, MetadataValue] = {}
    if "default" in named:
        found["tokenizer.chat_template"] = named.pop("default")
    if named:
        found["tokenizer.chat_templates"] = sorted(named)
        found.update({f"tokenizer.chat_template.{name}": named[name] for name in sorted(named)})
    return found
