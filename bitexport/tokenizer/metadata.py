"""A tokenizer in llama.cpp's terms, and the GGUF keys for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bitexport.gguf.writer import MetadataValue


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
        special: ids by role: bos, eos, eot, eom, unk, sep, pad, mask.
        add_bos, add_eos: whether encoding a text adds them, as tokenizer.json does.
        add_space_prefix: whether a space is added in front of the text (``llama``).
        chat_template: the template, or a list of named ones.
        padded: how many ids have no token in the tokenizer.
        warnings: messages for the user.
        ends: all ids at which generation ends.
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
    ends: tuple[int, ...] = ()

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
            "eom": "eom",
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
