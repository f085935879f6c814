#include "gemma3_norms.h"

#include <cmath>
#include <stdexcept>

void llama_model_gemma3_norms::load_arch_hparams(llama_model_loader & ml) {
    llama_model_gemma3::load_arch_hparams(ml);
    ml.get_key(LLM_KV_ATTENTION_SCALE, hparams.f_attention_scale, false);
    norm_in_eps = hparams.f_norm_rms_eps;
    ml.get_key(LLM_KV_NORM_IN_RMS_EPS, norm_in_eps, false);
    if (!hparams.causal_attn && hparams.swa_type == LLAMA_SWA_TYPE_STANDARD) {
        hparams.swa_type = LLAMA_SWA_TYPE_SYMMETRIC;
    }
}

void llama_model_gemma3_norms::load_arch_tensors(llama_model_loader & ml) {
    llama_model_gemma3::load_arch_tensors(ml);

    LLAMA_LOAD_LOCALS;

    const int64_t n_embd_q = n_embd_head_k * n_head;

    norms_in.resize(n_layer);
    for (int il = 0; il < n_layer; ++il) {
        llama_layer & layer = layers[il];
        input_norms & norms = norms_in[il];

        const auto optional = [&](llm_tensor tensor, int64_t size) {
            ggml_tensor * found = create_tensor(tn(tensor, "weight", il), {size}, TENSOR_NOT_REQUIRED);
            more_norms = more_norms || found != nullptr;
            return found;
        };

        norms.q             = optional(LLM_TENSOR_ATTN_Q_NORM_IN, n_embd);
        norms.k             = optional(LLM_TENSOR_ATTN_K_NORM_IN, n_embd);
        norms.v             = optional(LLM_TENSOR_ATTN_V_NORM_IN, n_embd);
        layer.attn_sub_norm = optional(LLM_TENSOR_ATTN_SUB_NORM, n_embd_q);
        norms.out           = optional(LLM_TENSOR_ATTN_OUT_NORM_IN, n_embd_q);
        norms.gate          = optional(LLM_TENSOR_FFN_GATE_NORM_IN, n_embd);
        norms.up            = optional(LLM_TENSOR_FFN_UP_NORM_IN, n_embd);
        layer.ffn_sub_norm  = optional(LLM_TENSOR_FFN_SUB_NORM, n_ff);
        norms.down          = optional(LLM_TENSOR_FFN_DOWN_NORM_IN, n_ff);
    }
    for (int il = 0; own_graph() && il < n_layer; ++il) {
        const llama_layer & layer = layers[il];
        if (layer.wq == nullptr || layer.wk == nullptr || layer.wv == nullptr) {
            throw std::runtime_error("a Gemma 3 with more norms or a window to both sides needs separate q, k and v");
        }
        if (layer.wq_b != nullptr || layer.wk_b != nullptr || layer.wv_b != nullptr) {
            throw std::runtime_error("a Gemma 3 with more norms or a window to both sides cannot have biases");
        }
    }
}

bool llama_model_gemma3_norms::own_graph() const {
    return more_norms || hparams.swa_type == LLAMA_SWA_TYPE_SYMMETRIC;
}

std::unique_ptr<llm_graph_context> llama_model_gemma3_norms::build_arch_graph(const llm_graph_params & params) const {
    if (!own_graph()) {
        return llama_model_gemma3::build_arch_graph(params);
    }
    return std::make_unique<norms_graph>(*this, params);
}

llama_model_gemma3_norms::norms_graph::norms_graph(const llama_model_gemma3_norms & model, const llm_graph_params & params)
    : input_norms_graph(params, model.norm_in_eps), model(model) {
    if (hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        build(build_attn_inp_kv());
    } else {
        build(build_attn_inp_kv_iswa());
    }
}

template <typename cache_input> void llama_model_gemma3_norms::norms_graph::build(cache_input * cache) {
    ggml_tensor * residual = build_inp_embd(model.tok_embd);
    residual = ggml_scale(ctx0, residual, ubatch.token != nullptr ? std::sqrt(float(n_embd)) : 1.0f);
    cb(residual, "inp_scaled", -1);

    ggml_tensor * positions = build_inp_pos();
    ggml_tensor * wanted    = build_inp_out_ids();

    for (int il = 0; il < n_layer; ++il) {
        const llama_layer & layer = model.layers[il];

        ggml_tensor * cur = attention(residual, positions, cache, il);
        if (il == n_layer - 1 && wanted != nullptr) {
            // After the last attention, only the tokens whose results were requested matter.
            cur      = ggml_get_rows(ctx0, cur, wanted);
            residual = ggml_get_rows(ctx0, residual, wanted);
        }
        cur = build_norm(cur, layer.attn_post_norm, nullptr, LLM_NORM_RMS, il);
        cb(cur, "attn_post_norm", il);
        residual = ggml_add(ctx0, cur, residual);
        cb(residual, "ffn_inp", il);

        cur = feed_forward(residual, il);
        cur = build_norm(cur, layer.ffn_post_norm, nullptr, LLM_NORM_RMS, il);
        cb(cur, "ffn_post_norm", il);
        residual = ggml_add(ctx0, cur, residual);
        residual = build_cvec(residual, il);
        cb(residual, "l_out", il);
    }

    ggml_tensor * cur = head(residual, model.output_norm, model.output);
    if (cur == nullptr) {
        return;
    }
    if (hparams.f_final_logit_softcapping != 0.0f) {
        cur = ggml_scale(ctx0, cur, 1.0f / hparams.f_final_logit_softcapping);
        cur = ggml_scale(ctx0, ggml_tanh(ctx0, cur), hparams.f_final_logit_softcapping);
        cb(cur, "result_output_capped", -1);
    }
    res->t_logits = cur;

    ggml_build_forward_expand(gf, cur);
}

// input and result: float32 [n_embd, n_tokens]
template <typename cache_input>
ggml_tensor * llama_model_gemma3_norms::norms_graph::attention(ggml_tensor * input, ggml_tensor * positions,
                                                               cache_input * cache, int il) {
    const llama_layer & layer       = model.layers[il];
    const input_norms & norms       = model.norms_in[il];
    const int64_t       n_embd_head = hparams.n_embd_head_k();
    const float         base        = model.get_rope_freq_base(cparams, il); // sliding-window layers have their own
    const float         scale       = model.get_rope_freq_scale(cparams, il);

    ggml_tensor * cur = build_norm(input, layer.attn_norm, nullptr, LLM_NORM_RMS, il);
    cb(cur, "attn_norm", il);

    ggml_tensor * query = linear(cur, norms.q, layer.wq, nullptr, "Qcur", il);
    ggml_tensor * key   = linear(cur, norms.k, layer.wk, nullptr, "Kcur", il);
    ggml_tensor * value = linear(cur, norms.v, layer.wv, nullptr, "Vcur", il);

    query = ggml_reshape_3d(ctx0, query, n_embd_head, n_head, n_tokens);
    key   = ggml_reshape_3d(ctx0, key, n_embd_head, n_head_kv, n_tokens);
    value = ggml_reshape_3d(ctx0, value, n_embd_head, n_head_kv, n_tokens);

    query = build_norm(query, layer.attn_q_norm, nullptr, LLM_NORM_RMS, il);
    key   = build_norm(key, layer.attn_k_norm, nullptr, LLM_NORM_RMS, il);
    cb(query, "Qcur_normed", il);
    cb(key, "Kcur_normed", il);

    query = ggml_rope_ext(ctx0, query, positions, nullptr, n_rot, rope_type, n_ctx_orig, base, scale, ext_factor,
                          attn_factor, beta_fast, beta_slow);
    key   = ggml_rope_ext(ctx0, key, positions, nullptr, n_rot, rope_type, n_ctx_orig, base, scale, ext_factor,
                          attn_factor, beta_fast, beta_slow);
    cb(query, "Qcur", il);
    cb(key, "Kcur", il);
    cb(value, "Vcur", il);

    // No output matrix here: a norm may come between the heads and it.
    cur = build_attn(cache, nullptr, nullptr, nullptr, query, key, value, nullptr, nullptr, nullptr,
                     hparams.f_attention_scale, il);
    cb(cur, "attn_heads", il);

    if (layer.attn_sub_norm != nullptr) {
        cur = build_norm(cur, layer.attn_sub_norm, nullptr, LLM_NORM_RMS, il);
        cb(cur, "attn_sub_norm", il);
    }
    return linear(cur, norms.out, layer.wo, nullptr, "attn_out", il);
}

// input and result: float32 [n_embd, n_tokens]
ggml_tensor * llama_model_gemma3_norms::norms_graph::feed_forward(ggml_tensor * input, int il) {
    const llama_layer & layer = model.layers[il];
    const input_norms & norms = model.norms_in[il];

    ggml_tensor * cur = build_norm(input, layer.ffn_norm, nullptr, LLM_NORM_RMS, il);
    cb(cur, "ffn_norm", il);

    ggml_tensor * up   = linear(cur, norms.up, layer.ffn_up, nullptr, "ffn_up", il);
    ggml_tensor * gate = linear(cur, norms.gate, layer.ffn_gate, nullptr, "ffn_gate", il);
    cur = ggml_mul(ctx0, gelu(gate), up);
    cb(cur, "ffn_gated", il);

    if (layer.ffn_sub_norm != nullptr) {
        cur = build_norm(cur, layer.ffn_sub_norm, nullptr, LLM_NORM_RMS, il);
        cb(cur, "ffn_sub_norm", il);
    }
    return linear(cur, norms.down, layer.ffn_down, nullptr, "ffn_out", il);
}

// GELU's tanh form: x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x sigmoid(2 u).
// ggml's own looks it up in float16: an error of 2^-11, far more than the 8-bit activations behind it can hide.
ggml_tensor * llama_model_gemma3_norms::norms_graph::gelu(ggml_tensor * input) {
    const float   twice = 2.0f * 0.79788456080286535588f;
    ggml_tensor * slope = ggml_scale_bias(ctx0, ggml_sqr(ctx0, input), 0.044715f * twice, twice);
    return ggml_mul(ctx0, ggml_sigmoid(ctx0, ggml_mul(ctx0, slope, input)), input);
}
