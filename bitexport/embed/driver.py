"""Embeds texts: settings of the file, prompts, token ids, batches, pooling, normalization."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitexport.checkpoint.sentence_transformers import EmbeddingSettings
from bitexport.embed.report import Embedding, EmbedReport
from bitexport.errors import GGUFError, UsageError
from bitexport.gguf.embedding_settings import POOLING_TYPES, settings_of
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.progress import Progress, ProgressEvent, ignore
from bitexport.runtime.embedding import BATCH_TEXTS, BATCH_TOKENS, EmbeddingSession
from bitexport.runtime.limits import check_text
from bitexport.runtime.loading import load
from bitexport.tokenizer.compare import encode


def embed(
    path: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    truncate: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    batch_texts: int = BATCH_TEXTS,
    threads: int = 0,
    progress: Progress = ignore,
) -> EmbedReport:
    """Embed texts with a GGUF file.

    Args:
        path: the file.
        texts: at least one text; none of them empty.
        prompt: a text to put in front of each, instead of one of the file's.
        prompt_name: the name of one of the file's prompts; its default one, if it has any, if None.
        pooling: ``mean``, ``cls`` or ``last``; what the file says if None.
        normalize: divide each vector by its L2 norm; what the file says if None.
        truncate: cut a text that is longer than the model's context instead of raising an error. The special
            token at the end is kept.
        batch_tokens, batch_texts: the most that one evaluation has of each. The results do not depend on
            them but for the rounding of sums.
        threads: 0 uses one per core.
        progress: called for every batch, in texts.

    Returns:
        One embedding for each text, in the same order.

    Raises:
        UsageError: a text is empty, not UTF-8, contains NUL or is longer than the context; an unknown prompt
            or pooling; or the file is not an embedding model and ``pooling`` is None.
        GGUFError, NativeLibraryError: the file cannot be loaded.
    """
    _check_texts(texts)
    if batch_tokens < 1 or not 1 <= batch_texts <= 256:
        raise UsageError(
            f"batch_tokens {batch_tokens}, batch_texts {batch_texts}; expected at least 1, and 1 to 256 texts"
        )
    file = read_gguf(Path(path))
    settings = chosen_settings(file, pooling)
    if normalize is not None:
        settings = replace(settings, normalize=normalize)
    prompt = _prompt(file, settings, prompt, prompt_name)
    progress(ProgressEvent(0, len(texts), "texts", "tokenizing"))
    ids, cut = _token_ids(file, [prompt + text for text in texts], truncate)
    vectors: dict[int, npt.NDArray[np.float32]] = {}
    with EmbeddingSession(
        path,
        pooling=settings.pooling,
        longest=max(map(len, ids)),
        batch_tokens=batch_tokens,
        batch_texts=batch_texts,
        n_threads=threads,
    ) as session:
        for index, vector in session.text_vectors(ids):
            vectors[index] = unit(vector) if settings.normalize else vector
            progress(ProgressEvent(len(vectors), len(texts), "texts", ""))
        return EmbedReport(
            embeddings=[
                Embedding(text, len(ids[index]), cut[index], vectors[index])
                for index, text in enumerate(texts)
            ],
            dimension=session.width,
            pooling=settings.pooling,
            normalized=settings.normalize,
            prompt=prompt,
            tier=session.tier,
        )


def chosen_settings(file: GGUFFile, pooling: str | None) -> EmbeddingSettings:
    """The file's settings, with ``pooling`` in place of its own.

    Raises:
        UsageError: there is no pooling, or an unknown one.
    """
    if pooling is not None and pooling not in POOLING_TYPES:
        raise UsageError(f"pooling {pooling!r} is unknown; expected one of {', '.join(POOLING_TYPES)}")
    found = settings_of(file)
    if pooling is not None:
        return replace(found or EmbeddingSettings(pooling), pooling=pooling)
    if found is None:
        raise UsageError(
            f"{file.path} is not an embedding model: it has no pooling_type; convert the checkpoint again if "
            f"it is one, or use it as one with --pooling {' | '.join(POOLING_TYPES)}"
        )
    return found


def unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``vector`` divided by its L2 norm; zero stays zero."""
    norm = np.float32(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not texts:
        raise UsageError("there are no texts; expected a list with at least one")
    for number, text in enumerate(texts, start=1):
        check_text(f"text {number}", text)
        if not text.strip():
            raise UsageError(f"text {number} is empty; expected at least one visible character: leave it out")
        if "\0" in text:
            raise UsageError(f"text {number} contains NUL at character {text.index(chr(0))}; remove it")


def _prompt(file: GGUFFile, settings: EmbeddingSettings, given: str | None, name: str | None) -> str:
    """The text to put in front of each input."""
    if given is not None:
        if name is not None:
            raise UsageError("both a prompt and the name of one are given; expected one of them")
        check_text("the prompt", given)
        return given
    name = settings.default_prompt if name is None else name
    if name is None:
        return ""
    if name not in settings.prompts:
        known = ", ".join(settings.prompts)
        raise UsageError(
            f"{file.path} has no prompt named {name!r}; "
            + (f"expected one of {known}" if known else "it has none: give the text itself with --prompt")
        )
    return settings.prompts[name]


def _token_ids(file: GGUFFile, texts: Sequence[str], truncate: bool) -> tuple[list[list[int]], list[bool]]:
    """The ids of each text, and whether it had to be cut to the model's context."""
    limit = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    if not isinstance(limit, int) or limit < 1:
        raise GGUFError(f"{file.path.name}: context_length is {limit!r}; expected a positive number")
    vocabulary = load(file.path, vocab_only=True)
    try:
        found = [encode(vocabulary, text, True) for text in texts]
    finally:
        vocabulary.close()
    keeps_end = file.metadata.get("tokenizer.ggml.add_eos_token") is True
    cut = [len(ids) > limit for ids in found]
    for number, ids in enumerate(found, start=1):
        if len(ids) > limit and not truncate:
            raise UsageError(
                f"text {number} has {len(ids)} tokens, more than the model's context of {limit}; shorten it, "
                "or cut it with --truncate"
            )
        if not ids:
            raise UsageError(f"text {number} has no tokens; expected a text that is not empty")
    kept = [
        ([*ids[: limit - 1], ids[-1]] if keeps_end else ids[:limit]) if long else ids
        for ids, long in zip(found, cut, strict=True)
    ]
    return kept, cut
