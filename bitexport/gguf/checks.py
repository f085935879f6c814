"""What would end the process inside libllama, or be run wrongly there, refused before it sees the file.

libllama answers most bad files with an error, but some numbers it asserts on, and some it replaces by others.
Only those are checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from bitexport.errors import GGUFError
from bitexport.gguf.names import TOKEN_EMBEDDING
from bitexport.gguf.reader import Array, GGUFFile, GGUFTensor
from bitexport.gguf.types import F32, I2_S, MAX_I2_S_ROW, alternatives

#: libllama's LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS.
MAX_LAYERS = 512
MAX_EXPERTS = 1024

#: architectures whose attention and RoPE are known to be plain, so that more can be checked.
PLAIN = ("bitnet-b1.58", "bitnet-25", "bitnet", "llama")

#: keys of special tokens; -1, as any type has it, says that there is none. libllama has defaults for two.
SPECIAL_TOKEN = re.compile(r"tokenizer\.ggml\.\w+_token_id")
NO_TOKEN = (-1, 2**32 - 1)
ALWAYS_USED = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")

#: types that ggml has for other things than weights.
NO_WEIGHTS = ("i8", "i16", "i32", "i64", "f64")

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
    _check_special_tokens(file)
    for tensor in file.tensors:
        if tensor.type is I2_S:
            _check_i2_s(file, tensor)
        elif architecture in PLAIN:
            _check_numbers_type(file, tensor)


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
    if tokens.type == "string":
        _check_distinct(file)


def _check_distinct(file: GGUFFile) -> None:
    """Tokens are looked up by their text; libllama gives empty ones a text of their own."""
    key, header = "tokenizer.ggml.tokens", 4 + 4 + 8  # the value's type, the elements' type, their number
    raw = file.raw(key)
    ids: dict[bytes, int] = {}
    at = header
    for number in range(file.metadata[key].length):
        end = at + 8 + int.from_bytes(raw[at : at + 8], "little")
        first = ids.setdefault(raw[at + 8 : end], number)
        if first != number and end > at + 8:
            raise GGUFError(
                f"{file.path.name}: {key} has {raw[at + 8 : end].decode(errors='replace')!r} twice, as "
                f"{first} and {number}; expected every text once: convert or download it again"
            )
        at = end


def _check_special_tokens(file: GGUFFile) -> None:
    """Ids outside the vocabulary, for which libllama would take its own defaults, another model's."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array):
        return
    for key, value in file.metadata.items():
        if not SPECIAL_TOKEN.fullmatch(key) or not isinstance(value, int):
            continue
        unset = value in NO_TOKEN and key not in ALWAYS_USED
        if not 0 <= value < tokens.length and not unset:
            raise GGUFError(
                f"{file.path.name}: {key} is {value}, and the vocabulary has ids 0 to {tokens.length - 1}; "
                "convert the checkpoint again, with the tokenizer that belongs to it"
            )


def _check_i2_s(file: GGUFFile, tensor: GGUFTensor) -> None:
    """What our kernels take: a matrix to multiply with, whose sums fit 32 bits."""
    where = f"{file.path.name}: tensor '{tensor.name}' of type i2_s has shape {list(tensor.shape)}"
    if tensor.name == TOKEN_EMBEDDING:
        raise GGUFError(
            f"{where}, but an embedding is looked up and not multiplied with; expected f16, q8_0 or q6_k: "
            "convert the checkpoint again"
        )
    if len(tensor.shape) != 2:
        raise GGUFError(f"{where}; expected two dimensions: convert the checkpoint again")
    if tensor.shape[1] > MAX_I2_S_ROW or tensor.shape[1] % 4:
        raise GGUFError(
            f"{where}; expected rows of a multiple of 4 and at most {MAX_I2_S_ROW} weights: use bitexport "
            f"convert with --type {alternatives(tensor.shape)}"
        )


def _check_numbers_type(file: GGUFFile, tensor: GGUFTensor) -> None:
    """Gains and biases, which ggml multiplies or adds in float32 only; weights, which are never integers."""
    if len(tensor.shape) == 1 and tensor.type is not F32:
        raise GGUFError(
            f"{file.path.name}: tensor '{tensor.name}' has one dimension and type {tensor.type.name}; "
            "expected f32, as gains and biases are: convert the checkpoint again"
        )
    if tensor.type.name in NO_WEIGHTS:
        raise GGUFError(
            f"{file.path.name}: tensor '{tensor.name}' has type {tensor.type.name}; expected a type of "
            "weights, such as f16 or q6_k: convert the checkpoint again"
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
