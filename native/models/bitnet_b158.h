// The graph "bitnet-b1.58": a ternary decoder with SubLN, as Microsoft's I2_S files name it.
#pragma once

#include "models/models.h"

// x + o(attn_sub_norm(attention(attn_norm(x)))), then y + down(ffn_sub_norm(relu(gate)^2 * up)) of ffn_norm(y).
// RoPE rotates halves (NEOX); the output head is token_embd unless the file has an output matrix of its own.
struct llama_model_bitnet_b158 : public llama_model_base {
    explicit llama_model_bitnet_b158(const llama_model_params & params) : llama_model_base(params) {}

    void load_arch_hparams(llama_model_loader & ml) override;
    void load_arch_tensors(llama_model_loader & ml) override;
    std::unique_ptr<llm_graph_context> build_arch_graph(const llm_graph_params & params) const override;

    struct graph : public llm_graph_context {
        graph(const llama_model & model, const llm_graph_params & params);

      private:
        ggml_tensor * attention(const llama_layer & layer, ggml_tensor * input, ggml_tensor * positions,
                                llm_graph_input_attn_kv * cache, int il);
        ggml_tensor * feed_forward(const llama_layer & layer, ggml_tensor * input, int il);
    };
};
