"""Metadata that a file lacks, in the form in which libllama takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def override_entries(api: Any, overrides: Mapping[str, str]) -> Any:
    """The value of ``kv_overrides`` in ``llama_model_params``, ended by an empty entry.

    Args:
        api: the functions and types of llama.h, see :func:`bitexport.runtime.library.api`.
        overrides: keys and texts.
    """
    entries = (api.llama_model_kv_override * (len(overrides) + 1))()
    for entry, (key, value) in zip(entries, overrides.items(), strict=False):
        entry.tag, entry.key = api.LLAMA_KV_OVERRIDE_TYPE_STR, key.encode("utf-8")
        entry.value.val_str = value.encode("utf-8")
    return entries
