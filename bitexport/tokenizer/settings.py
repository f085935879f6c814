"""What the files beside a tokenizer say: special tokens, chat template, ends of generation."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from bitexport.checkpoint.shards import read_json
from bitexport.errors import CheckpointError, TokenizerError
from bitexport.tokenizer.chat import TemplateError, render_template
from bitexport.tokenizer.ends import add_ends


def read_settings(path: Path) -> dict[str, Any]:
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


def special_vocabulary(folder: Path, vocab_size: int, warnings: list[str]) -> gguf.SpecialVocab:
    """Merges, special ids and chat template; warnings of the gguf package are appended to ``warnings``."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # decoders do not encode pairs of texts, and vocabulary.py determines bos and eos of a single text
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


def check_chat_template(template: Any) -> None:
    """Check a chat template, or a list of named ones.

    Raises:
        TokenizerError: one contains a lone surrogate, which UTF-8 cannot encode, is damaged, or needs more
            memory or time than it may.
    """
    try:
        json.dumps(template, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the chat template contains a lone surrogate ({error.object[error.start : error.end]!r}); "
            "expected UTF-8: correct tokenizer_config.json"
        ) from error
    named = template if isinstance(template, list) else [{"name": "", "template": template}]
    for entry in named:
        if isinstance(entry, dict) and isinstance(entry.get("template"), str):
            _check_rendering(str(entry.get("name") or ""), entry["template"])


def _check_rendering(name: str, template: str) -> None:
    """Render a short conversation. A template may refuse it, but not take more than the limits."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        render_template(template, {"messages": messages, "bos_token": "", "eos_token": ""})
    except TemplateError as error:
        which = f"the chat template {name!r}" if name else "the chat template"
        raise TokenizerError(
            f"{which} {error}; correct tokenizer_config.json or chat_template.jinja"
        ) from error
    except Exception:  # it wants other messages or variables
        return


def too_long(top: int, vocab_size: int) -> TokenizerError:
    """The error to raise for a vocabulary with ids up to ``top``, more than the model has."""
    return TokenizerError(
        f"the tokenizer has ids up to {top}, but the model has {vocab_size} embeddings (vocab_size); "
        "the tokenizer belongs to another model, or the embeddings were not resized: check both"
    )


def remote_code_warning(settings: Mapping[str, Any]) -> list[str]:
    """A warning if the tokenizer's class is code in the checkpoint."""
    remote = settings.get("auto_map")
    if not isinstance(remote, dict) or "AutoTokenizer" not in remote:
        return []
    return [
        f"tokenizer_config.json names {settings.get('tokenizer_class')}, a class whose code is in the "
        "checkpoint; it is not run: the tokenizer's other files are used"
    ]


def all_ends(
    folder: Path, special: dict[str, int], tokens: list[str], warnings: list[str]
) -> tuple[int, ...]:
    """All ends of generation, see :func:`~bitexport.tokenizer.ends.add_ends`.

    Raises:
        TokenizerError: generation_config.json or config.json is damaged.
    """
    try:
        return add_ends(folder, special, tokens, warnings)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error
