"""The tensors of our own graphs, by name, and their shapes from the hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping

from bitexport.gguf.checks.numbers import Numbers
from bitexport.gguf.reader import Array, GGUFFile

#: The sizes: V tokens, E embedding, F feed-forward, H one head; Q all heads of the query, K those of the key
#: or the value; R the pairs that RoPE rotates.
_MODEL = {
    "token_embd.weight": "VE",
    "output.weight": "VE",
    "output_norm.weight": "E",
    "rope_freqs.weight": "R",
}

_DECODER = {
    "attn_norm.weight": "E",
    "attn_q.weight": "QE",
    "attn_k.weight": "KE",
    "attn_v.weight": "KE",
    "attn_output.weight": "EQ",
    "ffn_norm.weight": "E",
    "ffn_gate.weight": "FE",
    "ffn_up.weight": "FE",
    "ffn_down.weight": "EF",
    "attn_q_norm.weight": "H",
    "attn_k_norm.weight": "H",
}

_BIASES = {
    "attn_q.bias": "Q",
    "attn_k.bias": "K",
    "attn_v.bias": "K",
    "attn_output.bias": "E",
    "ffn_gate.bias": "F",
    "ffn_up.bias": "F",
    "ffn_down.bias": "E",
}

_SUB_NORMS = {"attn_sub_norm.weight": "Q", "ffn_sub_norm.weight": "F"}

#: Norms in front of single linear layers.
_INPUT_NORMS = {
    "attn_q_norm_in.weight": "E",
    "attn_k_norm_in.weight": "E",
    "attn_v_norm_in.weight": "E",
    "attn_output_norm_in.weight": "Q",
    "ffn_gate_norm_in.weight": "E",
    "ffn_up_norm_in.weight": "E",
    "ffn_down_norm_in.weight": "F",
}

_BITNET = _DECODER | _BIASES | _SUB_NORMS | _INPUT_NORMS
_GEMMA3 = (
    _DECODER | _SUB_NORMS | _INPUT_NORMS | {"post_attention_norm.weight": "E", "post_ffw_norm.weight": "E"}
)

#: The tensors of a layer by architecture.
_LAYERS: Mapping[str, Mapping[str, str]] = {
    "bitnet-b1.58": _BITNET,
    "bitnet-25": _BITNET,
    "gemma3": _GEMMA3,
    "llama": _DECODER | _BIASES,
}


def expected_shapes(file: GGUFFile) -> dict[str, tuple[int, ...]] | None:
    """The names and shapes (outermost first) of all tensors that an architecture of ours may have.

    Returns:
        None for another architecture, a mixture of experts, or a file in which a number is missing or differs
        between layers.
    """
    numbers = Numbers(file)
    layer = _LAYERS.get(str(numbers.architecture))
    sizes = _sizes(file, numbers)
    if layer is None or sizes is None or numbers.get("expert_count"):
        return None

    def shape(letters: str) -> tuple[int, ...]:
        return tuple(sizes[letter] for letter in letters)

    found = {name: shape(letters) for name, letters in _MODEL.items()}
    for number in range(numbers.get("block_count")):
        found.update({f"blk.{number}.{name}": shape(letters) for name, letters in layer.items()})
    return found


def _sizes(file: GGUFFile, numbers: Numbers) -> dict[str, int] | None:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    hidden, heads = numbers.get("embedding_length"), numbers.get("attention.head_count")
    shared, inner = numbers.get("attention.head_count_kv") or heads, numbers.get("feed_forward_length")
    if not (hidden and heads and shared and inner and numbers.get("block_count")):
        return None
    if not isinstance(tokens, Array):
        return None
    head = numbers.get("attention.key_length") or hidden // heads
    rotated = numbers.get("rope.dimension_count") or head
    return {
        "V": tokens.length,
        "E": hidden,
        "F": inner,
        "H": head,
        "Q": heads * head,
        "K": shared * head,
        "R": rotated // 2,
    }
