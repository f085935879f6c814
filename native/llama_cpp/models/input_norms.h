// What our graphs of ternary students share: norms in front of single linear layers, and the end of the graph.
#pragma once

#include "models/models.h"

// The norms of one layer, blk.N.X_norm_in; null where there is none.
struct input_norms {
    ggml_tensor * q    = nullptr;
    ggml_tensor * k    = nullptr;
    ggml_tensor * v    = nullptr;
    ggml_tensor * out  = nullptr;
    ggml_tensor * gate = nullptr;
    ggml_tensor * up   = nullptr;
    ggml_tensor * down = nullptr;
};

struct input_norms_graph : public llm_graph_context {
    input_norms_graph(const llm_graph_params & params, float norm_in_eps)
        : llm_graph_context(params), norm_in_eps(norm_in_eps) {}

  protected:
    // A linear layer, with the norm in front of it and the bias, if it has them. The product quantizes its activations.
    // input: float32 [in, n_tokens]; result, called `name`: float32 [out, n_tokens]
    ggml_tensor * linear(ggml_tensor * input, ggml_tensor * norm_in, ggml_tensor * weight, ggml_tensor * bias,
                         const char * name, int il);

    // The final norm, whose result becomes the embeddings, and the logits of `output`.
    // input: float32 [n_embd, n_tokens]; result: float32 [n_vocab, n_tokens], or nullptr if no logits are wanted
    ggml_tensor * head(ggml_tensor * input, ggml_tensor * output_norm, ggml_tensor * output);

  private:
    float norm_in_eps;
};
