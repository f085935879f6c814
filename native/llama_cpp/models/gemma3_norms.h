// Gemma 3 text as a ternary student: llama.cpp's "gemma3" with more norms.
#pragma once

#include "input_norms.h"
#include "models/models.h"

#include <vector>

// Tensors that llama.cpp's gemma3 lacks, each optional; a file with none of them runs on llama.cpp's own graph, unless it has
// sliding windows and no causal mask, which that graph cannot run:
//   X_norm_in                     a norm in front of linear layer X
//   attn_sub_norm, ffn_sub_norm   SubLN
// Optional keys:
//   norm_in_rms_epsilon  of the norms X_norm_in
//   attention.scale      of queries times keys, if it does not follow from the head size
//   attention.causal     false: every token sees every other, in sliding-window layers those up to half a window away
struct llama_model_gemma3_norms : public llama_model_gemma3 {
    float                    norm_in_eps = 0.0f;
    bool                     more_norms  = false; // whether the file has any of the tensors above
    std::vector<input_norms> norms_in;            // one per layer

    explicit llama_model_gemma3_norms(const llama_model_params & params) : llama_model_gemma3(params) {}

    void load_arch_hparams(llama_model_loader & ml) override;
    void load_arch_tensors(llama_model_loader & ml) override;
    std::unique_ptr<llm_graph_context> build_arch_graph(const llm_graph_params & params) const override;

    bool own_graph() const; // whether norms_graph runs the file, and not llama.cpp's graph

    struct norms_graph : public input_norms_graph {
        norms_graph(const llama_model_gemma3_norms & model, const llm_graph_params & params);

      private:
        const llama_model_gemma3_norms & model;

        template <typename cache_input> void build(cache_input * cache);
        template <typename cache_input>
        ggml_tensor * attention(ggml_tensor * input, ggml_tensor * positions, cache_input * cache, int il);
        ggml_tensor * feed_forward(ggml_tensor * input, int il);
        ggml_tensor * gelu(ggml_tensor * input);
    };
};
