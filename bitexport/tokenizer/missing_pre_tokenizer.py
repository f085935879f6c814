"""The pre-tokenizer of a GGUF file that does not name one, found by its vocabulary.

Microsoft's I2_S files lack ``tokenizer.ggml.pre``; llama.cpp then splits text in its default way, and the
model gets tokens that it was not trained with. llama.cpp's converter knows tokenizers by a hash of the token
ids that they give one text. So the tokenizer is built again from the file's tokens and merges, once with each
way of splitting in ``pre_tokenizer.SPLITS``: when the hash of the ids is one that the table knows, both the
vocabulary and the way of splitting are the known tokenizer's.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from bitexport.gguf.reader import Array, GGUFFile
from bitexport.tokenizer.pre_tokenizer import SPLITS, Split, check_text, name_of_ids

MODEL_KEY = "tokenizer.ggml.model"
PRE_KEY = "tokenizer.ggml.pre"

#: gguf.TokenType of tokens that are taken out of a text before it is split.
CONTROL, USER_DEFINED = 3, 4


def lacks_pre(file: GGUFFile) -> bool:
    """Whether the tokenizer is byte-level BPE, which is split first, and nothing says how."""
    return file.metadata.get(MODEL_KEY) == "gpt2" and file.metadata.get(PRE_KEY, "default") == "default"


def derived_pre(file: GGUFFile) -> str | None:
    """llama.cpp's name of the pre-tokenizer that goes with the file's vocabulary; None where it is unknown.

    Takes a second or so for a large vocabulary.

    Raises:
        TokenizerError: llama.cpp's table beside our libraries is damaged.
    """
    text, tokenizer = check_text(), _tokenizer(file)
    if text is None or tokenizer is None:
        return None
    for split in SPLITS:
        tokenizer.pre_tokenizer = _splitter(split)
        tokenizer.model.ignore_merges = split.ignore_merges
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for around in _beginnings(file):
            if (name := name_of_ids([*around, *ids])) is not None:
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
    except Exception:  # tokenizers raises nothing else: merges of tokens that do not exist
        return None
    return tokenizer


def _splitter(split: Split) -> pre_tokenizers.PreTokenizer:
    steps: list[pre_tokenizers.PreTokenizer] = []
    for step in split.steps:
        if step == "digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif step != "gpt2":
            steps.append(pre_tokenizers.Split(Regex(step), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="gpt2" in split.steps))
    return pre_tokenizers.Sequence(steps)


def _beginnings(file: GGUFFile) -> list[list[int]]:
    """What may stand in front of a text: the table's hashes include it."""
    bos = file.metadata.get("tokenizer.ggml.bos_token_id")
    added = file.metadata.get("tokenizer.ggml.add_bos_token")
    if not isinstance(bos, int) or added is False:
        return [[]]
    return [[bos]] if added is True else [[bos], []]
