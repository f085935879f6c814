"""Finds the pre-tokenizer of a GGUF file that does not name one, by its vocabulary.

Microsoft's I2_S files lack ``tokenizer.ggml.pre``; llama.cpp then uses its default rule, and the model gets
tokens that it was not trained with. llama.cpp's converter recognises a tokenizer by the hash of the token ids
of a check text. So the tokenizer is rebuilt from the file's tokens and merges, once with each rule of
``pre_tokenizer.SPLIT_RULES``: if the hash of the ids is in the table, both the vocabulary and the rule are
those of the known tokenizer.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, models

from bitexport.gguf.reader import Array, GGUFFile
from bitexport.tokenizer.pre_tokenizer import SPLIT_RULES, name_of_ids, recognition_text

MODEL_KEY = "tokenizer.ggml.model"
PRE_KEY = "tokenizer.ggml.pre"

#: gguf.TokenType of the tokens that are matched in a text before it is split.
CONTROL, USER_DEFINED = 3, 4


def lacks_pre(file: GGUFFile) -> bool:
    """Whether the tokenizer is byte-level BPE, which needs a pre-tokenizer, but the file names none."""
    return file.metadata.get(MODEL_KEY) == "gpt2" and file.metadata.get(PRE_KEY, "default") == "default"


def derived_pre(file: GGUFFile) -> str | None:
    """llama.cpp's name for the pre-tokenizer of the file's vocabulary; None if it is unknown.

    Takes about a second for a large vocabulary.

    Raises:
        TokenizerError: llama.cpp's table, installed next to our libraries, is damaged.
    """
    text, tokenizer = recognition_text(), _tokenizer(file)
    if text is None or tokenizer is None:
        return None
    for rule in SPLIT_RULES:
        tokenizer.pre_tokenizer = rule.build()
        tokenizer.model.ignore_merges = rule.ignore_merges
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for prefix in _prefixes(file):
            if (name := name_of_ids([*prefix, *ids])) is not None:
                return name
    return None


def _tokenizer(file: GGUFFile) -> Tokenizer | None:
    lists = ("tokens", "merges", "token_type")
    if not all(isinstance(file.metadata.get(f"tokenizer.ggml.{key}"), Array) for key in lists):
        return None
    tokens, merges, types = (file.elements(f"tokenizer.ggml.{key}") for key in lists)
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        tokenizer = Tokenizer(
            models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=pairs)
        )
        tokenizer.add_tokens(
            [
                AddedToken(token, special=kind == CONTROL, normalized=False)
                for token, kind in zip(tokens, types, strict=True)
                if kind in (CONTROL, USER_DEFINED)
            ]
        )
    except Exception:  # tokenizers raises plain Exception, for example for merges of unknown tokens
        return None
    return tokenizer


def _prefixes(file: GGUFFile) -> list[list[int]]:
    """The ids that may precede those of a text; the hashes of the table include them."""
    bos = file.metadata.get("tokenizer.ggml.bos_token_id")
    added = file.metadata.get("tokenizer.ggml.add_bos_token")
    if not isinstance(bos, int) or added is False:
        return [[]]
    return [[bos]] if added is True else [[bos], []]
