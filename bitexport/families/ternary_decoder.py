"""The families that run on our own graph, ``bitnet-b1.58`` (native/llama_cpp/models/bitnet_b158.cpp).

Without the keys that :class:`TernaryDecoder` adds, the graph is Microsoft's 2B4T: ReLU squared, SubLN and
nothing else. RoPE pairs the two halves of a head on both sides, so rows keep their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitexport.families.base import Family, Hyperparameters, Scalar
from bitexport.families.parts import Part
from bitexport.families.rope import llama3_divisors

GRAPH = "bitnet-b1.58"


@dataclass(frozen=True, kw_only=True)
class TernaryDecoder(Family):
    """A family on the graph ``bitnet-b1.58``."""

    gguf_architecture: str = GRAPH

    def metadata(self, numbers: Hyperparameters) -> dict[str, Scalar | list[int]]:
        """The hyper-parameters as GGUF keys, including those that select the graph's optional parts."""
        found = super().metadata(numbers)
        if numbers.activation != "relu2":
            found[f"{GRAPH}.hidden_activation"] = numbers.activation
        if Part.SUB_NORMS not in numbers.parts:
            found[f"{GRAPH}.attention.sub_norm"] = False
        if Part.QK_NORMS in numbers.parts:
            found[f"{GRAPH}.attention.qk_norm"] = "after_rope" if self.qk_norm_after_rope else "before_rope"
        if Part.INPUT_NORMS in numbers.parts:
            found[f"{GRAPH}.norm_in_rms_epsilon"] = numbers.input_norm_eps
        return found

    def extra_tensors(self, numbers: Hyperparameters) -> dict[str, npt.NDArray[np.float32]]:
        """``rope_freqs`` if RoPE is scaled as in Llama 3.1."""
        if numbers.rope.kind == "llama3":
            return {"rope_freqs.weight": llama3_divisors(numbers.rope, numbers.head_dim)}
        return {}
