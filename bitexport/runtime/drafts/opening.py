"""Checks and opens what ``--draft`` names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitexport.errors import BitexportWarning, UsageError
from bitexport.gguf.embedding_settings import check_generates
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.runtime.drafts.limits import LOOKUP, check_draft_tokens
from bitexport.runtime.drafts.lookup import LookupDrafts
from bitexport.runtime.drafts.model import ModelDrafts
from bitexport.runtime.drafts.verify import DraftSource
from bitexport.runtime.library import bind
from bitexport.runtime.limits import checked_context, trained_context
from bitexport.runtime.loading import load

#: Differing tokens are shown shortened to this many characters.
_SHOWN = 40


def check_drafts(
    path: str | os.PathLike[str],
    draft: str | os.PathLike[str] | None,
    draft_tokens: int,
    workers: str | Sequence[str] = (),
) -> None:
    """Check the options about drafts, before anything is loaded.

    Args:
        path: the model's file.
        draft: :data:`LOOKUP`, the draft model's file, or None.
        draft_tokens: the most drafted tokens of a pass.
        workers: of the model.

    Raises:
        UsageError: a number is out of range, workers are given, or the draft model has other tokens or makes
            no text.
        GGUFError: a file is missing or damaged.
    """
    check_draft_tokens(draft_tokens)
    if draft is None:
        return
    if workers:
        raise UsageError(
            "drafts are evaluated on this machine alone; leave out --draft or --workers (in Python: draft or "
            "workers)"
        )
    if draft == LOOKUP:
        return
    model, drafting = read_gguf(os.fspath(path)), read_gguf(os.fspath(draft))
    check_generates(drafting)
    _check_same_tokens(model, drafting)
    own, theirs = (sum(tensor.nbytes for tensor in file.tensors) for file in (model, drafting))
    if theirs > own:
        warnings.warn(
            f"the draft model {drafting.path.name} is larger than {model.path.name} "
            f"({theirs / 2**20:.1f} and "
            f"{own / 2**20:.1f} MiB), so its drafts cost more than they save; use a smaller one",
            BitexportWarning,
            stacklevel=3,
        )


def open_drafts(llama: Any, draft: str | os.PathLike[str] | None, *, threads: int) -> DraftSource | None:
    """Open what was checked by :func:`check_drafts`.

    Args:
        llama: the model that the drafts are for.
        draft: as there.
        threads: the number of threads of a draft model.

    Raises:
        UsageError: a model's memory cannot forget its last tokens.
        GGUFError: the draft model cannot be loaded.
    """
    if draft is None:
        return None
    _check_forgets(llama, llama.model_path)
    if draft == LOOKUP:
        return LookupDrafts()
    longest = checked_context(draft, 0)
    context = min(llama.n_ctx(), max(longest, trained_context(draft)))
    if context < llama.n_ctx():
        warnings.warn(
            f"the draft model {Path(draft).name} has a context of {context} tokens, and {llama.n_ctx()} are "
            "in use, so nothing is drafted beyond; choose a shorter context or another draft model",
            BitexportWarning,
            stacklevel=3,
        )
    # its chat template, if it has one, is not used
    drafting = load(
        draft, n_ctx=context, n_threads=threads, n_threads_batch=threads, swa_full=True, chat_format="chatml"
    )
    _check_forgets(drafting, os.fspath(draft))
    return ModelDrafts(drafting, Path(draft).name)


def _check_forgets(llama: Any, path: str) -> None:
    """Refuse a recurrent model, whose state cannot be cut back to an earlier token."""
    api = bind().llama_cpp
    if api.llama_model_is_recurrent(llama.model) or api.llama_model_is_hybrid(llama.model):
        raise UsageError(
            f"{path} has a state that cannot forget its last tokens (a recurrent model), as drafts that were "
            "wrong need it to; leave out --draft"
        )


def _check_same_tokens(model: GGUFFile, drafting: GGUFFile) -> None:
    advice = "drafts need one vocabulary for both: use a smaller model of the same family"
    own, theirs = (_tokens(file) for file in (model, drafting))
    for number, (one, other) in enumerate(zip(own, theirs, strict=False)):
        if one != other:
            raise UsageError(
                f"token {number} is {_excerpt(one)} in {model.path.name} and {_excerpt(other)} in the draft "
                f"model {drafting.path.name}; {advice}"
            )
    if len(own) != len(theirs):
        raise UsageError(
            f"{model.path.name} has {len(own)} tokens and the draft model {drafting.path.name} "
            f"{len(theirs)}; {advice}"
        )


def _tokens(file: GGUFFile) -> list[str]:
    return list(map(str, file.elements("tokenizer.ggml.tokens")))


def _excerpt(token: str) -> str:
    return repr(token if len(token) <= _SHOWN else token[: _SHOWN - 1] + "…")
