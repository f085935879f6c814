// The graph "bitnet-b1.58": a ternary decoder with SubLN, as Microsoft's I2_S files name it.
#pragma once

#include "input_norms.h"
#include "models/models.h"

#include <vector>

// x + o(attn_sub_norm(attention(q, k, v of attn_norm(x)))), then y + down(ffn_sub_norm(act(gate) * up)) of ffn_norm(y).
// RoPE rotates halves (NEOX); the output head is token_embd unless the file has a separate output matrix.
//
// Without the keys below it is Microsoft's 2B4T: act is ReLU squared, and there are sub-norms and nothing else.
//   hidden_activation    "relu2" or "silu"
//   attention.sub_norm   false: no layer has sub-norms
//   attention.qk_norm    "before_rope" or "after_rope": each head of q and k is normed, with attn_q_norm, attn_k_norm
//   norm_in_rms_epsilon  of the norms X_norm_in in front of linear layers X
// Optional without a key: X_norm_in, biases of linear layers, rope_freqs.
struct llama_model_bitnet_b158 : public llama_model_base {
    enum class qk_norm_at { nowhere, before_rope, after_rope };

    bool                     silu        = false;
    bool                     sub_norm    = true;
    qk_norm_at               qk_norm     = qk_norm_at::nowhere;
    float                    norm_in_eps = 0.0f;
    std::vector<input_norms> norms_in; // one per layer

    explicit llama_model_bitnet_b158(const llama_model_params & params) : llama_model_base(params) {}

    void load_arch_hparams(llama_model_loader & ml) override;
    void load_arch_tensors(llama_model_loader & ml) override;
    std::unique_ptr<llm_graph_context> build_arch_graph(const llm_graph_params & params) const override;

    struct graph : public input_norms_graph {
        graph(const llama_model_bitnet_b158 & model, const llm_graph_params & params);

      private:
        const llama_model_bitnet_b158 & model;

        ggml_tensor * attention(ggml_tensor * input, ggml_tensor * positions, llm_graph_input_attn_kv * cache, int il);
        ggml_tensor * feed_forward(ggml_tensor * input, int il);
    };
};
