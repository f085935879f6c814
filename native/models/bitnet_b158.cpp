#include "bitnet_b158.h"

#include <cmath>

void llama_model_bitnet_b158::load_arch_hparams(llama_model_loader & ml) {
    ml.get_key(LLM_KV_ATTENTION_LAYERNORM_RMS_EPS, hparams.f_norm_rms_eps);
    type = hparams.n_layer() == 30 && hparams.n_embd == 2560 ? LLM_TYPE_2B : LLM_TYPE_UNKNOWN;
}

void llama_model_bitnet_b158::load_arch_tensors(llama_model_loader &) {
    LLAMA_LOAD_LOCALS;

    const int64_t n_embd_q = n_embd_head_k * n_head;

    tok_embd    = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD,  "weight"), {n_embd, n_vocab}, 0);
    output_norm = create_tensor(tn(LLM_TENSOR_OUTPUT_NORM, "weight"), {n_embd}, 0);
    output      = create_tensor(tn(LLM_TENSOR_OUTPUT,      "weight"), {n_embd, n_vocab}, TENSOR_NOT_REQUIRED);
    if (output == nullptr) {
        output = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, TENSOR_DUPLICATED);
    }

    for (int il = 0; il < n_layer; ++il) {
        llama_layer & layer = layers[il];

        layer.attn_norm = create_tensor(tn(LLM_TENSOR_ATTN_NORM, "weight", il), {n_embd}, 0);
        create_tensor_qkv(layer, il, n_embd, n_embd_q, n_embd_k_gqa, n_embd_v_gqa, 0);
        layer.attn_sub_norm = create_tensor(tn(LLM_TENSOR_ATTN_SUB_NORM, "weight", il), {n_embd_q}, 0);
        layer.wo            = create_tensor(tn(LLM_TENSOR_ATTN_OUT,      "weight", il), {n_embd_q, n_embd}, 0);

        layer.ffn_norm     = create_tensor(tn(LLM_TENSOR_FFN_NORM,     "weight", il), {n_embd}, 0);
        layer.ffn_gate     = create_tensor(tn(LLM_TENSOR_FFN_GATE,     "weight", il), {n_embd, n_ff}, 0);
        layer.ffn_up       = create_tensor(tn(LLM_TENSOR_FFN_UP,       "weight", il), {n_embd, n_ff}, 0);
        layer.ffn_sub_norm = create_tensor(tn(LLM_TENSOR_FFN_SUB_NORM, "weight", il), {n_ff}, 0);
        layer.ffn_down     = create_tensor(tn(LLM_TENSOR_FFN_DOWN,     "weight", il), {n_ff, n_embd}, 0);
    }
}

std::unique_ptr<llm_graph_context> llama_model_bitnet_b158::build_arch_graph(const llm_graph_params & params) const {
    return std::make_unique<graph>(*this, params);
}

llama_model_bitnet_b158::graph::graph(const llama_model & model, const llm_graph_params & params)
    : llm_graph_context(params) {
    GGML_ASSERT(hparams.n_embd_head_k() == hparams.n_embd_head_v());

    ggml_tensor *             residual  = build_inp_embd(model.tok_embd);
    ggml_tensor *             positions = build_inp_pos();
    llm_graph_input_attn_kv * cache     = build_attn_inp_kv();
    ggml_tensor *             wanted    = build_inp_out_ids();

    for (int il = 0; il < n_layer; ++il) {
        const llama_layer & layer = model.layers[il];

        ggml_tensor * cur = attention(layer, residual, positions, cache, il);
        if (il == n_layer - 1 && wanted != nullptr) {
            // Past the last attention only the tokens whose logits were asked for matter.
            cur      = ggml_get_rows(ctx0, cur, wanted);
            residual = ggml_get_rows(ctx0, residual, wanted);
        }
        residual = ggml_add(ctx0, cur, residual);
        cb(residual, "ffn_inp", il);

        cur      = feed_forward(layer, residual, il);
        residual = ggml_add(ctx0, cur, residual);
        residual = build_cvec(residual, il);
        cb(residual, "l_out", il);
    }

    ggml_tensor * cur = build_norm(residual, model.output_norm, nullptr, LLM_NORM_RMS, -1);
    cb(cur, "result_norm", -1);
    res->t_embd = cur;

    cur = build_lora_mm(model.output, cur);
    cb(cur, "result_output", -1);
    res->t_logits = cur;

    ggml_build_forward_expand(gf, cur);
}

// input and result: float32 [n_embd, n_tokens]
ggml_tensor * llama_model_bitnet_b158::graph::attention(const llama_layer & layer, ggml_tensor * input,
                                                        ggml_tensor * positions, llm_graph_input_attn_kv * cache,
                                                        int il) {
    const int64_t n_embd_head = hparams.n_embd_head_k();

    ggml_tensor * cur = build_norm(input, layer.attn_norm, nullptr, LLM_NORM_RMS, il);
    cb(cur, "attn_norm", il);

    auto [query, key, value] = build_qkv(layer, cur, n_embd_head, n_head, n_head_kv, il);
    const auto rotate = [&](ggml_tensor * heads) {
        return ggml_rope_ext(ctx0, heads, positions, nullptr, n_rot, rope_type, n_ctx_orig, freq_base, freq_scale,
                             ext_factor, attn_factor, beta_fast, beta_slow);
    };
    query = rotate(query);
    key   = rotate(key);
    cb(query, "Qcur", il);
    cb(key,   "Kcur", il);
    cb(value, "Vcur", il);

    // No output matrix here: SubLN stands between the heads and it.
    cur = build_attn(cache, nullptr, nullptr, nullptr, query, key, value, nullptr, nullptr, nullptr,
                     1.0f / std::sqrt(float(n_embd_head)), il);
    cb(cur, "attn_heads", il);

    cur = build_norm(cur, layer.attn_sub_norm, nullptr, LLM_NORM_RMS, il);
    cb(cur, "attn_sub_norm", il);

    cur = build_lora_mm(layer.wo, cur);
    cb(cur, "attn_out", il);
    return cur;
}

// input and result: float32 [n_embd, n_tokens]
ggml_tensor * llama_model_bitnet_b158::graph::feed_forward(const llama_layer & layer, ggml_tensor * input, int il) {
    ggml_tensor * cur = build_norm(input, layer.ffn_norm, nullptr, LLM_NORM_RMS, il);
    cb(cur, "ffn_norm", il);

    // down is left out of build_ffn: SubLN stands in front of it.
    cur = build_ffn(cur,
                    layer.ffn_up,   nullptr, nullptr,
                    layer.ffn_gate, nullptr, nullptr,
                    nullptr,        nullptr, nullptr,
                    nullptr, LLM_FFN_RELU_SQR, LLM_FFN_PAR, il);
    cb(cur, "ffn_gated", il);

    cur = build_norm(cur, layer.ffn_sub_norm, nullptr, LLM_NORM_RMS, il);
    cb(cur, "ffn_sub_norm", il);

    cur = build_lora_mm(layer.ffn_down, cur);
    cb(cur, "ffn_out", il);
    return cur;
}
