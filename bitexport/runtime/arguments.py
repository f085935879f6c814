"""Rejects arguments of :func:`bitexport.load` that llama_cpp.Llama ignores, crashes on or cannot use."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitexport.errors import BitexportError, UsageError
from bitexport.gguf.reader import GGUFFile, read_gguf
from bitexport.runtime.library import bind
from bitexport.runtime.limits import check_trained_context

#: The types of llama.cpp's key-value cache, by ggml's type numbers. libllama aborts on others.
CACHE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip

#: Arguments that are sizes, and their smallest values; all are 32-bit numbers in libllama.
_SIZES = {"n_ctx": 0, "n_batch": 1, "n_ubatch": 0, "yarn_orig_ctx": 0}
_LARGEST = 2**31 - 1

#: Arguments that stretch a model's context beyond the one that it was trained with.
_STRETCHING = ("rope_scaling_type", "rope_freq_base", "rope_freq_scale", "yarn_orig_ctx")


def check_arguments(model: GGUFFile, given: Mapping[str, Any]) -> None:
    """Check the keyword arguments for opening ``model``.

    Raises:
        UsageError: names the argument and its value.
    """
    _check_names(given)
    for name, least in _SIZES.items():
        value = given.get(name, least)
        if not hasattr(value, "__index__") or not least <= value <= _LARGEST:
            raise UsageError(f"{name} is {value!r}; expected a whole number from {least} to {_LARGEST}")
    if not any(given.get(name) for name in _STRETCHING):
        check_trained_context(model, given.get("n_ctx", 0))
    for name in ("type_k", "type_v"):
        value = given.get(name)
        if value is not None and value not in CACHE_TYPES.values():
            known = ", ".join(f"{number} ({kind})" for kind, number in CACHE_TYPES.items())
            raise UsageError(f"{name} is {value!r}, not a type of the cache; expected one of {known}")
    for name in ("lora_path", "lora_base"):
        if given.get(name) is not None:
            _check_adapter(name, Path(given[name]), model)
    if hasattr(given.get("chat_handler"), "clip_model_path"):
        raise UsageError(
            f"chat_handler is a {type(given['chat_handler']).__name__}, which reads images with libmtmd; "
            "bitexport has none for its libraries: leave it out and use text"
        )


def _check_names(given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(bind().Llama.__init__).parameters.values()
    known = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "see llama_cpp.Llama for those that exist"
            raise UsageError(f"load has no argument {name!r}; {hint}")


def _check_adapter(name: str, path: Path, model: GGUFFile) -> None:
    """Check that a LoRA file is one, and for this model: libllama crashes on others when it computes."""
    if not path.is_file():
        raise UsageError(f"{name} is {path}, which is not a file; give the path of a GGUF file")
    if name == "lora_base":  # ignored by this llama.cpp
        return
    try:
        metadata = read_gguf(path).metadata
    except BitexportError as error:
        raise UsageError(f"{name}: {error}") from error
    kind = metadata.get("general.type"), metadata.get("adapter.type")
    if kind != ("adapter", "lora"):
        raise UsageError(
            f"{name} is {path}, which is not a LoRA adapter; llama.cpp's convert_lora_to_gguf.py makes one"
        )
    theirs, ours = metadata.get("general.architecture"), model.metadata.get("general.architecture")
    if theirs != ours:
        raise UsageError(f"{name} is {path}, an adapter for {theirs}; {model.path.name} is {ours}")
