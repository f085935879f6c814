"""Whether a checkpoint is an embedding model, and how its token vectors become one vector."""

from __future__ import annotations

from bitexport.checkpoint import Checkpoint
from bitexport.checkpoint.sentence_transformers import (
    MODULES,
    EmbeddingSettings,
    read_sentence_transformers,
)
from bitexport.convert.choices import check_choice
from bitexport.errors import CheckpointError
from bitexport.families import Part, is_headless
from bitexport.gguf.embedding_settings import POOLING_TYPES

#: The pooling of Microsoft's bitnet-embeddings, which its guide to them documents; followed by normalization.
DOCUMENTED = EmbeddingSettings("last")


def embedding_settings(
    checkpoint: Checkpoint, parts: frozenset[Part], pooling: str | None, warnings: list[str]
) -> EmbeddingSettings | None:
    """The settings of an embedding model; None for a model with a head and without other signs of one.

    Args:
        parts: the optional parts of the model.
        pooling: the value of ``--pooling``, which takes precedence over the checkpoint's own.
        warnings: where a default is announced.

    Raises:
        CheckpointError: an embedding model does not say how it pools, and neither does ``pooling``.
        UnsupportedError: see :func:`read_sentence_transformers`.
        UsageError: ``pooling`` is unknown.
    """
    if pooling is not None:
        check_choice("pooling", pooling, tuple(POOLING_TYPES))
    found = read_sentence_transformers(checkpoint.path, pooling)
    if pooling is not None:
        return found or EmbeddingSettings(pooling)
    if found is not None or not is_headless(checkpoint.config):
        return found
    if Part.INPUT_NORMS in parts:
        warnings.append(
            f"no {MODULES}: the vector of the last token, normalized, is a text's embedding, as documented "
            "for Microsoft's bitnet-embeddings; choose another with --pooling"
        )
        return DOCUMENTED
    raise CheckpointError(
        f"{checkpoint.path}: an embedding model ({checkpoint.config['architectures'][0]}) without {MODULES}, "
        f"which says how it pools; choose it with --pooling {' | '.join(POOLING_TYPES)}"
    )
