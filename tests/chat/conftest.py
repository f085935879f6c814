"""Tiny chat models, with random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bitexport.convert import convert

#: Every message between two control tokens; the name of a role is plain text.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|pad|>{{ m['role'] }}\n{{ m['content'] }}<|end_of_text|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|pad|>assistant\n{% endif %}"
)

ChatModel = Callable[..., Path]


@pytest.fixture(scope="session")
def chat_model(checkpoint_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    """``chat_model(template, **options)`` -> a GGUF file with this chat template; None for no template."""
    made: dict[tuple[object, ...], Path] = {}

    def make(template: str | None = TEMPLATE, **options: object) -> Path:
        key = (template, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("chat")
            copy = folder / "checkpoint"
            shutil.copytree(checkpoint_of("packed-multiply", **options), copy)
            settings = json.loads((copy / "tokenizer_config.json").read_text())
            settings.pop("chat_template", None)
            if template is not None:
                settings["chat_template"] = template
            (copy / "tokenizer_config.json").write_text(json.dumps(settings))
            made[key] = folder / "model.gguf"
            convert(copy, made[key], embed_type="f16")
        return made[key]

    return make
