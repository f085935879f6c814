#include "input_norms.h"

#include <string>

ggml_tensor * input_norms_graph::linear(ggml_tensor * input, ggml_tensor * norm_in, ggml_tensor * weight,
                                        ggml_tensor * bias, const char * name, int il) {
    ggml_tensor * cur = input;
    if (norm_in != nullptr) {
        cur = ggml_mul(ctx0, ggml_rms_norm(ctx0, cur, norm_in_eps), norm_in);
        cb(cur, (std::string(name) + "_norm_in").c_str(), il);
    }
    cur = build_lora_mm(weight, cur);
    if (bias != nullptr) {
        cb(cur, (std::string(name) + "_product").c_str(), il);
        cur = ggml_add(ctx0, cur, bias);
    }
    cb(cur, name, il);
    return cur;
}

ggml_tensor * input_norms_graph::head(ggml_tensor * input, ggml_tensor * output_norm, ggml_tensor * output) {
    ggml_tensor * cur = build_norm(input, output_norm, nullptr, LLM_NORM_RMS, -1);
    cb(cur, "result_norm", -1);
    res->t_embd = cur;

    if (cparams.embeddings && pooling_type != LLAMA_POOLING_TYPE_NONE) {
        // Logits of a context that pools embeddings would be computed for nothing.
        ggml_build_forward_expand(gf, cur);
        return nullptr;
    }

    cur = build_lora_mm(output, cur);
    cb(cur, "result_output", -1);
    return cur;
}
