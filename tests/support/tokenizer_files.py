"""Changes to the tokenizer files of a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The name of a JSON file and a change to its content.
Edit = tuple[str, Callable[[dict[str, Any]], object]]

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"

NO_POST_PROCESSOR: Edit = ("tokenizer.json", lambda t: t.update(post_processor=None))


def edit(folder: Path, change: Callable[[dict[str, Any]], object], file: str = "tokenizer.json") -> Path:
    """Change a JSON file of a checkpoint folder; returns the folder."""
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def template(*single: str) -> Edit:
    """Set a post-processor that adds these tokens to a text: ``template("<|begin_of_text|>", "$A")``."""

    def change(tokenizer: dict[str, Any]) -> None:
        parts = [
            {"Sequence": {"id": "A", "type_id": 0}}
            if part == "$A"
            else {"SpecialToken": {"id": part, "type_id": 0}}
            for part in single
        ]
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        tokens = {part: {"id": part, "ids": [ids[part]], "tokens": [part]} for part in single if part != "$A"}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": parts,
            "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": tokens,
        }

    return "tokenizer.json", change


def settings(**values: Any) -> Edit:
    """Set entries of tokenizer_config.json."""
    return "tokenizer_config.json", lambda c: c.update(values)
