"""Ternary Llama (Llama-3-8B-1.58, Falcon3-1.58, Falcon-E): llama.cpp's own ``llama`` graph, unchanged.

That graph's RoPE rotates pairs of neighbouring rows of a head, whereas transformers pairs its two halves. So
the rows of q and k are interleaved: row ``2 i`` of a head is written from its row ``i``, and row ``2 i + 1``
from its row ``head_dim / 2 + i``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitexport.families.base import Claim, Family, Hyperparameters
from bitexport.families.rope import llama3_divisors
from bitexport.families.rules import decoder_rules


class LlamaFamily(Family):
    """Llama, whose query and key rows are interleaved."""

    def row_order(self, claim: Claim, numbers: Hyperparameters) -> npt.NDArray[np.intp] | None:
        """Interleave the halves of each head of q and k."""
        if not claim.rotated:
            return None
        rows = np.arange(claim.shape[0], dtype=np.intp)
        return rows.reshape(-1, 2, numbers.head_dim // 2).swapaxes(1, 2).reshape(-1)

    def extra_tensors(self, numbers: Hyperparameters) -> dict[str, npt.NDArray[np.float32]]:
        """``rope_freqs`` if RoPE is scaled as in Llama 3.1."""
        if numbers.rope.kind == "llama3":
            return {"rope_freqs.weight": llama3_divisors(numbers.rope, numbers.head_dim)}
        return {}


LLAMA = LlamaFamily(
    name="Llama",
    summary="Llama-3-8B-1.58, Falcon3-1.58, Falcon-E; q and k rows interleaved for RoPE",
    architectures=("LlamaForCausalLM",),
    model_class="LlamaForCausalLM",
    gguf_architecture="llama",
    activations=("silu",),
    default_theta=10000.0,
    default_eps=1e-6,
    rules=decoder_rules(),
)
