"""Decides how a file is served: checks it and the options, and fills in what depends on the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from bitexport.errors import BitexportWarning, UsageError
from bitexport.gguf.embedding_settings import POOLING_TYPES, settings_of
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.runtime.drafts.limits import DEFAULT_DRAFT_TOKENS, LOOKUP
from bitexport.runtime.drafts.opening import check_drafts
from bitexport.runtime.limits import SHORT_CONTEXT, check_threads, checked_context
from bitexport.runtime.loading import can_try, checked_file
from bitexport.runtime.placement import Placement
from bitexport.runtime.remote import Workers
from bitexport.runtime.threads import default_threads
from bitexport.serve.address import check_address, check_key
from bitexport.serve.command import BATCH, Plan
from bitexport.serve.limits import Limits
from bitexport.serve.template import check_chat_templates

_TEMPLATE_KEY = "tokenizer.chat_template"
_MOST_SLOTS = 256


def plan(
    path: str | os.PathLike[str],
    *,
    host: str,
    port: int,
    api_key: str | None,
    slots: int,
    ctx: int,
    threads: int,
    cache_mib: int,
    embeddings: bool,
    pooling: str | None,
    limits: Limits,
    workers: str | Sequence[str] = (),
    layers: Sequence[int] = (),
    draft: str | os.PathLike[str] | None = None,
    draft_tokens: int = DEFAULT_DRAFT_TOKENS,
) -> Plan:
    """Check everything that can be checked before the process starts. See :class:`bitexport.serve.Server`.

    Raises:
        GGUFError, UnsupportedError, TokenizerError: see :func:`bitexport.runtime.loading.checked_file`.
        UsageError: an option is out of range, or does not fit the file.
        WorkerError: a worker cannot be used.
    """
    if api_key is not None:
        check_key(api_key)
    check_address(host, port, api_key)
    if not 1 <= slots <= _MOST_SLOTS:
        raise UsageError(f"{slots} slots were requested; expected 1 to {_MOST_SLOTS}")
    if cache_mib < 0:
        raise UsageError(f"a prompt cache of {cache_mib} MiB was requested; expected 0 or more")
    threads = threads or default_threads()
    check_threads(threads)
    if layers and not workers:
        raise UsageError("--layers divides a model among --workers, and there are none; give --workers")
    file, overrides = checked_file(path, trial=not workers or can_try(path))
    header = read_gguf(file)
    context = checked_context(file, ctx)
    trained = _trained_context(header)
    if ctx > trained:
        raise UsageError(f"a context of {ctx} tokens was requested; the model was trained with {trained}")
    chosen, normalize = _pooling(header, embeddings, pooling)
    if draft is not None:
        draft = _checked_draft(file, draft, draft_tokens, workers, slots, chosen)
    check_chat_templates(header)
    addresses, placement = _placement(file, workers, layers, context * slots)
    return Plan(
        file=file,
        overrides=overrides,
        host=host,
        port=port,
        api_key=api_key,
        slots=slots,
        ctx=context,
        threads=threads,
        cache_mib=0 if chosen else cache_mib,
        pooling=chosen,
        normalize=normalize,
        chats=chosen is None and bool(header.metadata.get(_TEMPLATE_KEY)),
        limits=limits,
        workers=addresses,
        placement=placement,
        draft=draft,
        draft_tokens=draft_tokens,
    )


def _placement(
    file: Path, workers: str | Sequence[str], layers: Sequence[int], n_ctx: int
) -> tuple[tuple[str, ...], Placement | None]:
    """The workers' addresses and what they compute."""
    if not workers:
        return (), None
    remote = Workers(workers)
    try:
        return tuple(remote.addresses), remote.place(file, layers, n_ctx)
    finally:
        remote.close()  # the server makes connections of its own


def _checked_draft(
    file: Path,
    draft: str | os.PathLike[str],
    draft_tokens: int,
    workers: str | Sequence[str],
    slots: int,
    pooling: str | None,
) -> str | Path:
    """``"lookup"``, or the checked file of the draft model."""
    if pooling is not None:
        raise UsageError(f"{file.name} is served for embeddings, which have no drafts; leave out --draft")
    check_drafts(file, draft, draft_tokens, workers)
    if slots * (1 + draft_tokens) > BATCH:
        together = slots * (1 + draft_tokens)
        raise UsageError(
            f"{slots} slots with {draft_tokens} draft tokens each are {together} tokens per pass; expected "
            f"at most {BATCH}: set fewer --slots or fewer --draft-tokens"
        )
    if draft == LOOKUP:
        return LOOKUP
    found, overrides = checked_file(draft)
    if overrides:
        raise UsageError(
            f"the draft model {found.name} lacks {', '.join(overrides)}, which llama-server cannot complete; "
            "convert it again"
        )
    return found


def _pooling(header: GGUFFile, embeddings: bool, pooling: str | None) -> tuple[str | None, bool]:
    """The pooling, None for a model that generates text; and whether vectors are normalized."""
    if pooling is not None and pooling not in POOLING_TYPES:
        raise UsageError(f"the pooling is {pooling!r}; expected one of {', '.join(POOLING_TYPES)}")
    settings = settings_of(header)
    if settings is None:
        if embeddings and pooling is None:
            raise UsageError(
                f"{header.path.name} is not an embedding model: it does not say how to make one vector from "
                "those of the tokens; choose with --pooling, or leave --embeddings out"
            )
        return pooling, True
    if settings.default_prompt is not None:
        warnings.warn(
            f"{header.path.name} has the default prompt {settings.default_prompt!r}, which the server does "
            "not put in front of texts; the clients have to",
            BitexportWarning,
            stacklevel=4,
        )
    return pooling or settings.pooling, settings.normalize


def _trained_context(header: GGUFFile) -> int:
    key = f"{header.metadata.get('general.architecture')}.context_length"
    return int(header.metadata.get(key, SHORT_CONTEXT))
