"""Hyper-parameters that would end the process inside libllama, refused before it sees the file.

libllama answers most bad files with an error, but some numbers it asserts on. Only those are checked here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from bitexport.errors import GGUFError
from bitexport.gguf.reader import Array, GGUFFile

#: libllama's LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS.
MAX_LAYERS = 512
MAX_EXPERTS = 1024

#: architectures whose attention and RoPE are known to be plain, so that more can be checked.
PLAIN = ("bitnet-b1.58", "bitnet-25", "bitnet", "llama")

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")


def check_hyperparameters(file: GGUFFile) -> None:
    """Check the numbers that a graph is built from. A key that is missing or of another type is libllama's to
    name.

    Raises:
        GGUFError: names the first bad key, its value and what was expected.
    """
    architecture = file.metadata.get("general.architecture")
    numbers = _Numbers(file, f"{architecture}.")
    numbers.check("block_count", lambda n: 0 < n <= MAX_LAYERS, f"1 to {MAX_LAYERS}")
    experts = numbers.get("expert_count") or 0
    numbers.check("expert_count", lambda n: 0 <= n <= MAX_EXPERTS, f"at most {MAX_EXPERTS}")
    numbers.check(
        "expert_used_count",
        lambda n: min(1, experts) <= n <= experts,
        f"at least one of the {experts} experts, and no more" if experts else "0, for there are no experts",
    )
    scaling = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:
        raise numbers.error("rope.scaling.type", scaling, f"one of {', '.join(ROPE_SCALINGS)}")
    if architecture in PLAIN:
        _check_attention(numbers)
    _check_vocabulary(file)


def _check_attention(numbers: _Numbers) -> None:
    numbers.check(
        "attention.layer_norm_rms_epsilon", lambda e: math.isfinite(e) and e >= 0, "a small positive number"
    )
    # no assertion, but every number after it would be NaN
    numbers.check("rope.freq_base", lambda f: math.isfinite(f) and f > 0, "a positive number")
    heads, hidden = numbers.get("attention.head_count"), numbers.get("embedding_length")
    numbers.check("attention.head_count", lambda n: n > 0, "at least 1")
    numbers.check("embedding_length", lambda n: n > 0, "at least 1")
    if heads is None or hidden is None:
        return
    numbers.check(
        "attention.head_count_kv", lambda n: n > 0 and heads % n == 0, f"a divisor of the {heads} heads"
    )
    key = numbers.get("attention.key_length") or hidden // heads
    value = numbers.get("attention.value_length") or hidden // heads
    if key != value:
        raise numbers.error("attention.value_length", value, f"the key's length of {key}")
    numbers.check(
        "rope.dimension_count",
        lambda n: 0 < n <= key and n % 2 == 0,
        f"an even number up to the head's {key}",
    )


def _check_vocabulary(file: GGUFFile) -> None:
    """Three lists of one length, of which libllama believes the first."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array):
        return
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        other = file.metadata.get(key)
        if isinstance(other, Array) and other.length != tokens.length:
            raise GGUFError(
                f"{file.path.name}: {key} has {other.length} elements; expected one for each of the "
                f"{tokens.length} tokens: convert or download it again"
            )


class _Numbers:
    """The hyper-parameters of an architecture that are single numbers."""

    def __init__(self, file: GGUFFile, prefix: str) -> None:
        self._file = file
        self._prefix = prefix

    def get(self, key: str) -> Any:
        value = self._file.metadata.get(self._prefix + key)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def check(self, key: str, good: Callable[[Any], bool], expected: str) -> None:
        value = self.get(key)
        if value is not None and not good(value):
            raise self.error(key, value, expected)

    def error(self, key: str, value: object, expected: str) -> GGUFError:
        return GGUFError(
            f"{self._file.path.name}: {self._prefix}{key} is {value!r}; expected {expected}: the file is "
            "damaged, convert or download it again"
        )
