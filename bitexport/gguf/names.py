"""Names of the GGUF tensors that code treats by name. Families map all the others."""

from __future__ import annotations

import re

TOKEN_EMBEDDING = "token_embd.weight"
OUTPUT_HEAD = "output.weight"

#: The matrices of a mixture of experts, one 3-D tensor each. llama.cpp multiplies by them with MUL_MAT_ID in
#: every architecture (``LLM_TENSOR_INFOS`` in src/llama-arch.cpp, ``build_moe_ffn`` in src/llama-graph.cpp).
EXPERTS = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down|gate_up)_(?:ch)?exps\.weight")

#: Matrices of blocks that llama.cpp never quantizes, whatever the file's type and architecture
#: (``tensor_allows_quantization`` in src/llama-quant.cpp): norms, the router of a mixture of experts, and
#: small ones.
NEVER_QUANTIZED = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj"
    r"|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|attn_rel_b\.weight"
    r"|time_mix_(?:first|[wvag]\d|decay_w\d|lerp_fused)\.weight"
)
