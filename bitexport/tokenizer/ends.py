"""Finds all tokens at which generation ends, and the keys of a GGUF file for them.

A chat model often has several: the end of a text and the end of a turn. transformers stops at every id in
generation_config.json, or in config.json. libllama stops at the tokens of ``eos_token_id``, ``eot_token_id``
and ``eom_token_id``, and at tokens with certain texts (src/llama-vocab.cpp, ``special_eog_ids``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitexport.checkpoint.shards import read_json

#: The files whose ``eos_token_id`` counts.
FILES = ("generation_config.json", "config.json")

#: The roles that a file has for the ends other than eos.
OTHER_ROLES = ("eot", "eom")

#: Texts that libllama takes for ends without a key. Only their order of preference depends on this list.
KNOWN_TEXTS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
    }
)

#: How many wrong ids of a file get a warning each.
MAX_NAMED = 3

END_OF_MESSAGE = "<|eom_id|>"


def add_ends(
    folder: Path, special: dict[str, int], tokens: Sequence[str], warnings: list[str]
) -> tuple[int, ...]:
    """Give every end of generation a role in ``special``, as far as there are roles.

    Args:
        special: ids by role; eot, eom and, if missing, eos are added.
        tokens: the text of each id.
        warnings: messages for the user are appended.

    Returns:
        All ends, without those that no key of a file can hold.

    Raises:
        CheckpointError: generation_config.json is damaged.
    """
    found = [number for file in FILES for number in _ids(folder / file, len(tokens), warnings)]
    if found and "eos" not in special:
        special["eos"] = found[0]
    have = {special[role] for role in ("eos", *OTHER_ROLES) if role in special}
    more = [number for number in dict.fromkeys(found) if number not in have]
    free = [role for role in OTHER_ROLES if role not in special]
    # without a key, libllama finds those with known texts all the same
    by_key = [number for number in more if tokens[number] not in KNOWN_TEXTS]
    by_text = [number for number in more if tokens[number] in KNOWN_TEXTS]
    chosen = (by_key + by_text)[: len(free)]
    chosen.sort(key=lambda number: (tokens[number] == END_OF_MESSAGE, number in by_key))
    special.update(zip(free, chosen, strict=False))
    lost = [number for number in by_key if number not in chosen]
    if lost:
        names = ", ".join(f"{number} ({tokens[number]!r})" for number in lost)
        warnings.append(
            f"eos_token_id lists {len(have) + len(more)} ends of generation, and a GGUF file has keys for "
            f"three: llama.cpp does not stop at {names}; give their texts as `stop` to create_completion"
        )
    return (*have, *(number for number in more if number not in lost))


def _ids(path: Path, count: int, warnings: list[str]) -> list[int]:
    """The valid ids of a file's ``eos_token_id``, a number or a list."""
    if not path.is_file():
        return []
    value: Any = read_json(path).get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    found = [each for each in values if isinstance(each, int) and not isinstance(each, bool)]
    others = [each for each in found if not 0 <= each < count]
    warnings += [
        f"{path.name}: eos_token_id {each} is not a token; expected 0 to {count - 1}"
        for each in others[:MAX_NAMED]
    ]
    if others[MAX_NAMED:]:
        warnings.append(f"{path.name}: eos_token_id has {len(others[MAX_NAMED:])} more that are not tokens")
    return [each for each in found if 0 <= each < count]
