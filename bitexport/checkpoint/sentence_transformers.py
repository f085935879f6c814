"""How a checkpoint's token vectors become one vector per text, as sentence-transformers saves it.

``modules.json`` lists the steps: a Transformer, a Pooling, and perhaps a Normalize, each with a folder for
its ``config.json``. ``config_sentence_transformers.json`` has the prompts: texts to put in front of an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bitexport.checkpoint.shards import read_document, read_json
from bitexport.errors import CheckpointError, UnsupportedError

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"

#: Our names for the poolings, which are libllama's, by the key or the name in a Pooling's config.json.
POOLINGS = MappingProxyType(
    {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
        "mean": "mean",
        "cls": "cls",
        "lasttoken": "last",
    }
)


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """How an embedding model turns the vectors of a text's tokens into one.

    Attributes:
        pooling: ``mean`` of all tokens, ``cls`` (the first one) or ``last``.
        normalize: whether the result is divided by its L2 norm.
        prompts: texts to put in front of an input, by name.
        default_prompt: the name of the one that is used if none is chosen; None if there is none.
    """

    pooling: str
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def read_sentence_transformers(folder: Path, pooling: str | None = None) -> EmbeddingSettings | None:
    """The settings in a checkpoint folder; None if it has no modules.json.

    Args:
        folder: the checkpoint.
        pooling: the pooling, if it is given and not the folder's own.

    Raises:
        CheckpointError: a file is damaged, or is missing although another one names it.
        UnsupportedError: a module or a pooling that libllama does not have.
    """
    if not (folder / MODULES).is_file():
        return None
    normalize = False
    for module in _modules(folder / MODULES):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = pooling or _pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif not kind.endswith("Transformer"):
            raise UnsupportedError(
                f"{MODULES} has a module of type {module.get('type')!r}, which would be lost; expected "
                "Transformer, Pooling and Normalize"
            )
    if pooling is None:
        raise CheckpointError(f"{MODULES} has no Pooling; expected one: choose it with --pooling")
    prompts, default = _prompts(folder / PROMPTS)
    return EmbeddingSettings(pooling, normalize, prompts, default)


def _modules(path: Path) -> list[Mapping[str, Any]]:
    found = read_document(path)
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise CheckpointError(f"{path.name}: expected a list of modules; download it again")
    return found


def _pooling(path: Path) -> str:
    """The pooling that a Pooling's config.json chooses."""
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise CheckpointError(f"{where} is missing, which {MODULES} names; download it again")
    config = read_json(path)
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    named = config.get("pooling_mode")
    if named is not None and not chosen:
        chosen = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    known = [POOLINGS[name] for name in chosen if name in POOLINGS]
    if len(chosen) != 1 or not known:
        raise UnsupportedError(
            f"{where} chooses the pooling {', '.join(chosen) or 'none'}; expected one of mean_tokens, "
            "cls_token and lasttoken: choose it with --pooling"
        )
    if config.get("include_prompt") is False and known[0] != "last":
        raise UnsupportedError(
            f"{where}: include_prompt false, so that a prompt's tokens are not pooled, which libllama cannot "
            f"do with {known[0]}; expected true"
        )
    return known[0]


def _prompts(path: Path) -> tuple[dict[str, str], str | None]:
    if not path.is_file():
        return {}, None
    config = read_json(path)
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{path.name}: prompts is {prompts!r}; expected texts by name: correct it")
    if default is not None and default not in prompts:
        raise CheckpointError(
            f"{path.name}: default_prompt_name is {default!r}; expected null or one of the prompts, "
            f"{', '.join(prompts) or 'of which there are none'}: correct it"
        )
    return prompts, default
