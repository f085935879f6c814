"""Rejects files that libllama would crash on or run wrongly.

libllama reports an error for most bad files, but it asserts on some values and silently replaces others. Only
those are checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from bitexport.errors import GGUFError, UnsupportedError
from bitexport.gguf.foreign_types import FOREIGN_OF_STORAGE, ROTATION_PREFIX
from bitexport.gguf.names import EXPERTS, TOKEN_EMBEDDING
from bitexport.gguf.reader import Array, GGUFFile, GGUFTensor
from bitexport.gguf.types import F32, I2_S, MAX_I2_S_ROW, alternatives, runs

#: libllama's LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS.
MAX_LAYERS = 512
MAX_EXPERTS = 1024

#: Architectures with ordinary attention and RoPE, for which more can be checked.
PLAIN = ("bitnet-b1.58", "bitnet-25", "bitnet", "llama", "gemma3")

#: Keys of special tokens. -1, as int32 or uint32, means that there is none, except for the two tokens for
#: which libllama would then use its own defaults.
SPECIAL_TOKEN = re.compile(r"tokenizer\.ggml\.\w+_token_id")
NO_TOKEN = (-1, 2**32 - 1)
ALWAYS_USED = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")

#: ggml types that are not used for weights.
NON_WEIGHT_TYPES = ("i8", "i16", "i32", "i64", "f64")

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")


def check_hyperparameters(file: GGUFFile) -> None:
    """Check the numbers from which a graph is built. Missing keys and wrong types are left to libllama.

    Raises:
        GGUFError: a value is invalid; names the key, the value and what was expected.
    """
    architecture = file.metadata.get("general.architecture")
    numbers = _Numbers(file, f"{architecture}.")
    numbers.check("block_count", lambda n: 0 < n <= MAX_LAYERS, f"1 to {MAX_LAYERS}")
    experts = numbers.get("expert_count") or 0
    numbers.check("expert_count", lambda n: 0 <= n <= MAX_EXPERTS, f"at most {MAX_EXPERTS}")
    numbers.check(
        "expert_used_count",
        lambda n: min(1, experts) <= n <= experts,
        f"at least one and at most {experts}, the number of experts"
        if experts
        else "0, as there are no experts",
    )
    scaling = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:
        raise numbers.error("rope.scaling.type", scaling, f"one of {', '.join(ROPE_SCALINGS)}")
    if architecture in PLAIN:
        _check_attention(numbers)
    _check_vocabulary(file)
    _check_special_tokens(file)
    for tensor in file.tensors:
        if tensor.type is I2_S:
            _check_i2_s(file, tensor)
        elif architecture in PLAIN:
            _check_type(file, tensor)


def foreign_notes(file: GGUFFile) -> list[str]:
    """What keeps our libllama from running a file of another project, a sentence each; and what to do."""
    found = {tensor.type: tensor for tensor in reversed(file.tensors) if tensor.type in FOREIGN_OF_STORAGE}
    notes = [
        f"{file.path.name}: tensor '{tensor.name}' is {FOREIGN_OF_STORAGE[kind]}, which this runtime does "
        f"not run; convert the file first: bitexport convert {file.path.name} OUT.gguf"
        for kind, tensor in found.items()
    ]
    rotated = _rotation(file)
    return [rotated] if rotated else notes


def check_foreign(file: GGUFFile) -> None:
    """Reject a file of another project that is read, but not run.

    Raises:
        UnsupportedError: it has such a type, or rotated weights.
    """
    notes = foreign_notes(file)
    if notes:
        raise UnsupportedError(notes[0])


def check_rotation(file: GGUFFile) -> None:
    """Raise UnsupportedError for rotated weights, which are wrong without the rotation of their inputs."""
    rotated = _rotation(file)
    if rotated:
        raise UnsupportedError(rotated)


def _rotation(file: GGUFFile) -> str:
    key = next((key for key in file.metadata if key.startswith(ROTATION_PREFIX)), None)
    if key is None:
        return ""
    return (
        f"{file.path.name}: its weights are rotated ({key}), and only PrismML's llama.cpp rotates the "
        "activations to match; run it there, or use a model without rotation"
    )


def _check_attention(numbers: _Numbers) -> None:
    numbers.check(
        "attention.layer_norm_rms_epsilon", lambda e: math.isfinite(e) and e >= 0, "a small positive number"
    )
    # not an assertion, but every value computed from it would be NaN
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
        raise numbers.error("attention.value_length", value, f"the key length of {key}")
    numbers.check(
        "rope.dimension_count",
        lambda n: 0 < n <= key and n % 2 == 0,
        f"an even number up to the head size of {key}",
    )


def _check_vocabulary(file: GGUFFile) -> None:
    """Check that the three token lists have the same length; libllama only looks at the first one's."""
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
    if tokens.type == "string":
        _check_distinct(file)


def _check_distinct(file: GGUFFile) -> None:
    """Check that no two tokens have the same text, except empty ones, which libllama renames."""
    key = "tokenizer.ggml.tokens"
    raw = file.raw(key)
    ids: dict[bytes, int] = {}
    at = 4 + 4 + 8  # after the type of the value, the type of the elements and their number
    for number in range(file.metadata[key].length):
        end = at + 8 + int.from_bytes(raw[at : at + 8], "little")
        first = ids.setdefault(raw[at + 8 : end], number)
        if first != number and end > at + 8:
            raise GGUFError(
                f"{file.path.name}: {key} has {raw[at + 8 : end].decode(errors='replace')!r} twice, with ids "
                f"{first} and {number}; expected every text once: convert or download it again"
            )
        at = end


def _check_special_tokens(file: GGUFFile) -> None:
    """Check that special ids are in the vocabulary; libllama would replace others by its own defaults."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array):
        return
    for key, value in file.metadata.items():
        if not SPECIAL_TOKEN.fullmatch(key) or not isinstance(value, int):
            continue
        unset = value in NO_TOKEN and key not in ALWAYS_USED
        if not 0 <= value < tokens.length and not unset:
            raise GGUFError(
                f"{file.path.name}: {key} is {value}, but the vocabulary has ids 0 to {tokens.length - 1}; "
                "convert the checkpoint again with its own tokenizer"
            )


def _check_i2_s(file: GGUFFile, tensor: GGUFTensor) -> None:
    """Check that our kernels support the tensor: one matrix, or one per expert, whose sums fit in 32 bits."""
    where = f"{file.path.name}: tensor '{tensor.name}' of type i2_s has shape {list(tensor.shape)}"
    if tensor.name == TOKEN_EMBEDDING:
        raise GGUFError(
            f"{where}, but an embedding is a lookup table, not a matrix to multiply by; expected f16, q8_0 "
            "or q6_k: convert the checkpoint again"
        )
    experts = EXPERTS.fullmatch(tensor.name) is not None
    if len(tensor.shape) != 2 + experts:
        expected = "three dimensions, as for experts" if experts else "two dimensions"
        raise GGUFError(f"{where}; expected {expected}: convert the checkpoint again")
    if not runs(I2_S, tensor.shape):
        each = ", and experts of a multiple of 128 weights" if experts else ""
        raise GGUFError(
            f"{where}; expected rows of a multiple of 4 and at most {MAX_I2_S_ROW} weights{each}: use "
            f"bitexport convert with --type {alternatives(tensor.shape)}"
        )


def _check_type(file: GGUFFile, tensor: GGUFTensor) -> None:
    """Check that gains and biases are float32, as ggml requires, and that weights have a type for weights."""
    if len(tensor.shape) == 1 and tensor.type is not F32:
        raise GGUFError(
            f"{file.path.name}: tensor '{tensor.name}' has one dimension and type {tensor.type.name}; "
            "expected f32, the type of gains and biases: convert the checkpoint again"
        )
    if tensor.type.name in NON_WEIGHT_TYPES:
        raise GGUFError(
            f"{file.path.name}: tensor '{tensor.name}' has type {tensor.type.name}; expected a weight type, "
            "such as f16 or q6_k: convert the checkpoint again"
        )


class _Numbers:
    """The scalar hyper-parameters of an architecture."""

    def __init__(self, file: GGUFFile, prefix: str) -> None:
        self._file = file
        self._prefix = prefix

    def get(self, key: str) -> Any:
        value = self._file.metadata.get(self._prefix + key)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def check(self, key: str, valid: Callable[[Any], bool], expected: str) -> None:
        value = self.get(key)
        if value is not None and not valid(value):
            raise self.error(key, value, expected)

    def error(self, key: str, value: object, expected: str) -> GGUFError:
        return GGUFError(
            f"{self._file.path.name}: {self._prefix}{key} is {value!r}; expected {expected}: the file is "
            "damaged, convert or download it again"
        )
