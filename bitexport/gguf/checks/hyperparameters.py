"""Checks the numbers from which a graph is built."""

from __future__ import annotations

import difflib
import math
from typing import Any

from bitexport.gguf.checks.libllama import known
from bitexport.gguf.checks.numbers import Numbers, damaged, shown
from bitexport.gguf.reader import GGUFFile

#: libllama's LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS.
MAX_LAYERS = 512
MAX_EXPERTS = 1024

#: More than any model was trained with: 16.8 million tokens.
MAX_CONTEXT = 1 << 24

#: Architectures with ordinary attention and RoPE, for which more can be checked.
PLAIN = ("bitnet-b1.58", "bitnet-25", "bitnet", "llama", "gemma3")

#: Architectures in which one expert or none stands for an ordinary feed-forward layer.
ONE_EXPERT_IS_NONE = ("hunyuan-dense", "hunyuan_vl")

#: Architectures without attention.
WITHOUT_HEADS = ("mamba", "mamba2", "rwkv6", "rwkv7", "rwkv6qwen2", "arwkv7", "wavtokenizer-dec")

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

_HEADS = "attention.head_count"
_WINDOW = "attention.sliding_window"

#: Whole numbers of every architecture: the smallest and the largest value.
_INTEGERS = {
    "block_count": (1, MAX_LAYERS),
    "context_length": (1, MAX_CONTEXT),
    "embedding_length": (1, 1 << 20),
    "vocab_size": (0, 1 << 24),
    "attention.key_length": (0, 1 << 16),
    "attention.value_length": (0, 1 << 16),
    "rope.dimension_count": (0, 1 << 16),
    "expert_group_used_count": (0, MAX_EXPERTS),
}

#: Whole numbers that some architectures have for each layer.
_PER_LAYER = {
    "feed_forward_length": 1 << 24,
    _HEADS: 1 << 16,
    "attention.head_count_kv": 1 << 16,
}

_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_SCALES = ("rope.scaling.factor", "rope.scaling.attn_factor", "rope.freq_base_swa")


def check_architecture(file: GGUFFile) -> None:
    """Check that our libllama knows the architecture.

    Raises:
        GGUFError: it does not.
    """
    name = file.metadata.get("general.architecture")
    if isinstance(name, str) and name in known().architectures:
        return
    close = difflib.get_close_matches(str(name), known().architectures, 3)
    hint = f", such as {', '.join(close)}" if close else ""
    raise damaged(
        file, f"general.architecture is {shown(name)}; expected one that this llama.cpp knows{hint}"
    )


def check_hyperparameters(file: GGUFFile) -> None:
    """Check the numbers of a known architecture; missing ones are left to libllama.

    Raises:
        GGUFError: a value is invalid; names the key, the value and what was expected.
    """
    numbers = Numbers(file)
    for key, (low, high) in _INTEGERS.items():
        numbers.check_integer(key, low, high)
    for key, high in _PER_LAYER.items():
        for value in numbers.per_layer(key):
            if not 0 <= value <= high:
                raise numbers.error(key, value, f"0 to {high}")
    if numbers.get(_WINDOW) is not None:  # otherwise missing, or one for each layer
        numbers.check_integer(_WINDOW, 0, MAX_CONTEXT)
    layers = numbers.get("block_count") or MAX_LAYERS
    # in a file with only the layers that predict more tokens, they are all
    numbers.check_integer("nextn_predict_layers", 0, layers - (numbers.architecture in PLAIN))
    _check_experts(numbers)
    for key in _EPSILONS:
        numbers.check(key, lambda e: math.isfinite(e) and e > 0, "a small positive number")
    for key in _SCALES:
        numbers.check(key, lambda f: math.isfinite(f) and f >= 0, "a finite number that is not negative")
    scaling = file.metadata.get(f"{numbers.architecture}.rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:
        raise numbers.error("rope.scaling.type", scaling, f"one of {', '.join(ROPE_SCALINGS)}")
    heads = numbers.per_layer(_HEADS)
    if numbers.architecture not in WITHOUT_HEADS and not any(heads):
        raise numbers.error(_HEADS, 0 if heads else None, "at least 1")
    if numbers.architecture in PLAIN:
        _check_attention(numbers)


def _check_experts(numbers: Numbers) -> None:
    numbers.check("expert_count", lambda n: 0 <= n <= MAX_EXPERTS, f"at most {MAX_EXPERTS}")
    experts = numbers.get("expert_count") or 0
    if numbers.architecture in ONE_EXPERT_IS_NONE and experts <= 1:
        return
    used = max(numbers.per_layer("expert_used_count"), default=0)
    if not min(1, experts) <= used <= experts:
        raise numbers.error(
            "expert_used_count",
            used or None,
            f"at least one and at most {experts}, the number of experts"
            if experts
            else "0, as there are no experts",
        )
    numbers.check(
        "expert_group_count",
        lambda n: n == 0 or (0 < n < experts and experts % n == 0),
        f"a divisor of {experts}, the number of experts, below it"
        if experts
        else "0, as there are no experts",
    )
    groups = numbers.get("expert_group_count") or 0
    if groups > 1 and not 0 < (numbers.get("expert_group_used_count") or 0) < groups:
        value = numbers.get("expert_group_used_count")
        raise numbers.error("expert_group_used_count", value, f"at least 1, and fewer than {groups} groups")


def _check_attention(numbers: Numbers) -> None:
    # not an assertion, but every value computed from it would be NaN
    numbers.check("rope.freq_base", lambda f: math.isfinite(f) and f > 0, "a positive number")
    heads, hidden = numbers.get(_HEADS), numbers.get("embedding_length")
    if heads is None or hidden is None:  # missing, or one number of heads for each layer
        return
    if numbers.get("attention.head_count_kv") is not None:
        numbers.check(
            "attention.head_count_kv", lambda n: n > 0 and heads % n == 0, f"a divisor of the {heads} heads"
        )
    _check_head(numbers, hidden // heads)


def _check_head(numbers: Numbers, default: Any) -> None:
    key = numbers.get("attention.key_length") or default
    value = numbers.get("attention.value_length") or default
    if key != value:
        raise numbers.error("attention.value_length", value, f"the key length of {key}")
    numbers.check(
        "rope.dimension_count",
        lambda n: 0 < n <= key and n % 2 == 0,
        f"an even number up to the head size of {key}",
    )
