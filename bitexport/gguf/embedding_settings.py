"""How an embedding model's file says what becomes of its token vectors.

libllama reads ``<architecture>.pooling_type``. Normalization and prompts have no key there: they are under
``bitexport.embedding.``, and a file without these keys is normalized, as llama.cpp's own tools do.
"""

from __future__ import annotations

import shlex
from types import MappingProxyType

from bitexport.checkpoint.sentence_transformers import EmbeddingSettings
from bitexport.errors import GGUFError, UsageError
from bitexport.gguf.reader import Array, GGUFFile
from bitexport.gguf.writer import MetadataValue

#: libllama's numbers of the poolings.
POOLING_TYPES = MappingProxyType({"mean": 1, "cls": 2, "last": 3})
#: Its numbers for "each token has a vector" and "not said", which a file of a generating model may have.
NO_POOLING = (0, -1)

_PREFIX = "bitexport.embedding"


def settings_metadata(architecture: str, settings: EmbeddingSettings) -> dict[str, MetadataValue]:
    """The GGUF keys of an embedding model."""
    found: dict[str, MetadataValue] = {
        f"{architecture}.pooling_type": POOLING_TYPES[settings.pooling],
        f"{_PREFIX}.normalize": settings.normalize,
        f"{_PREFIX}.prompt_names": list(settings.prompts),
        f"{_PREFIX}.prompts": list(settings.prompts.values()),
    }
    if settings.default_prompt is not None:
        found[f"{_PREFIX}.default_prompt"] = settings.default_prompt
    return found


def settings_of(file: GGUFFile) -> EmbeddingSettings | None:
    """An embedding model's settings; None if the file does not call itself one.

    Raises:
        GGUFError: its pooling or its prompts are invalid.
    """
    key = f"{file.metadata.get('general.architecture')}.pooling_type"
    number = file.metadata.get(key)
    if number is None or number in NO_POOLING:
        return None
    pooling = next((name for name, known in POOLING_TYPES.items() if known == number), None)
    if pooling is None:
        raise GGUFError(
            f"{file.path.name}: {key} is {number!r}, which is not supported; expected one of "
            f"{', '.join(f'{known} ({name})' for name, known in POOLING_TYPES.items())}"
        )
    names, texts = _texts(file, "prompt_names"), _texts(file, "prompts")
    default = file.metadata.get(f"{_PREFIX}.default_prompt")
    if len(names) != len(texts) or default not in (None, *names):
        raise GGUFError(
            f"{file.path.name}: {len(names)} names for {len(texts)} prompts, default {default!r}; convert "
            "the checkpoint again"
        )
    normalize = file.metadata.get(f"{_PREFIX}.normalize", True)
    return EmbeddingSettings(pooling, bool(normalize), dict(zip(names, texts, strict=True)), default)


def check_generates(file: GGUFFile) -> None:
    """Raise UsageError, with the command to use instead, if a file is an embedding model's."""
    settings = settings_of(file)
    if settings is not None:
        raise UsageError(
            f"{file.path} is an embedding model (pooling {settings.pooling}), which makes vectors and not "
            f"text; use it with: bitexport embed {shlex.quote(str(file.path))} --text TEXT"
        )


def _texts(file: GGUFFile, name: str) -> list[str]:
    key = f"{_PREFIX}.{name}"
    return list(map(str, file.elements(key))) if isinstance(file.metadata.get(key), Array) else []
