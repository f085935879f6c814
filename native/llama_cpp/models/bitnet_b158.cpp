#include "bitnet_b158.h"

#include <cmath>
#include <stdexcept>

void llama_model_bitnet_b158::load_arch_hparams(llama_model_loader & ml) {
    ml.get_key(LLM_KV_ATTENTION_LAYERNORM_RMS_EPS, hparams.f_norm_rms_eps);

    std::string activation = "relu2";
    ml.get_key(LLM_KV_HIDDEN_ACT, activation, false);
    silu = activation == "silu";
    if (!silu && activation != "relu2") {
        throw std::runtime_error("hidden_activation is '" + activation + "'; this graph computes relu2 or silu");
    }

    ml.get_key(LLM_KV_ATTENTION_SUB_NORM, sub_norm, false);

    std::string norm;
    if (ml.get_key(LLM_KV_ATTENTION_QK_NORM, norm, false)) {
        if (norm != "before_rope" && norm != "after_rope") {
            throw std::runtime_error("attention.qk_norm is '" + norm + "'; expected before_rope or after_rope");
        }
        qk_norm = norm == "before_rope" ? qk_norm_at::before_rope : qk_norm_at::after_rope;
    }

    norm_in_eps = hparams.f_norm_rms_eps;
    ml.get_key(LLM_KV_NORM_IN_RMS_EPS, norm_in_eps, false);

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

    norms_in.resize(n_layer);
    for (int il = 0; il < n_layer; ++il) {
        llama_layer & layer = layers[il];
        input_norms & norms = norms_in[il];

        const auto optional = [&](llm_tensor tensor, const char * what, int64_t size) {
            return create_tensor(tn(tensor, what, il), {size}, TENSOR_NOT_REQUIRED);
        };

        layer.attn_norm = create_tensor(tn(LLM_TENSOR_ATTN_NORM, "weight", il), {n_embd}, 0);

        norms.q    = optional(LLM_TENSOR_ATTN_Q_NORM_IN, "weight", n_embd);
        layer.wq   = create_tensor(tn(LLM_TENSOR_ATTN_Q, "weight", il), {n_embd, n_embd_q}, 0);
        layer.wq_b = optional(LLM_TENSOR_ATTN_Q, "bias", n_embd_q);
        norms.k    = optional(LLM_TENSOR_ATTN_K_NORM_IN, "weight", n_embd);
        layer.wk   = create_tensor(tn(LLM_TENSOR_ATTN_K, "weight", il), {n_embd, n_embd_k_gqa}, 0);
        layer.wk_b = optional(LLM_TENSOR_ATTN_K, "bias", n_embd_k_gqa);
        norms.v    = optional(LLM_TENSOR_ATTN_V_NORM_IN, "weight", n_embd);
        layer.wv   = create_tensor(tn(LLM_TENSOR_ATTN_V, "weight", il), {n_embd, n_embd_v_gqa}, 0);
        layer.wv_b = optional(LLM_TENSOR_ATTN_V, "bias", n_embd_v_gqa);
        if (qk_norm != qk_norm_at::nowhere) {
            layer.attn_q_norm = create_tensor(tn(LLM_TENSOR_ATTN_Q_NORM, "weight", il), {n_embd_head_k}, 0);
            layer.attn_k_norm = create_tensor(tn(LLM_TENSOR_ATTN_K_NORM, "weight", il), {n_embd_head_k}, 0);
        }
        layer.rope_freqs = create_tensor(tn(LLM_TENSOR_ROPE_FREQS, "weight", il), {n_rot / 2},
                                         TENSOR_NOT_REQUIRED | (il != 0 ? TENSOR_DUPLICATED : 0));

        if (sub_norm) {
            layer.attn_sub_norm = create_tensor(tn(LLM_TENSOR_ATTN_SUB_NORM, "weight", il), {n_embd_q}, 0);
        }
        norms.out  = optional(LLM_TENSOR_ATTN_OUT_NORM_IN, "weight", n_embd_q);
        layer.wo   = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "weight", il), {n_embd_q, n_embd}, 0);
        layer.wo_b = optional(LLM_TENSOR_ATTN_OUT, "bias", n_embd);

        layer.ffn_norm = create_tensor(tn(LLM_TENSOR_FFN_NORM, "weight", il), {n_embd}, 0);

        norms.gate       = optional(LLM_TENSOR_FFN_GATE_NORM_IN, "weight", n_embd);
        layer.ffn_gate   = create_tensor(tn(LLM_TENSOR_FFN_GATE, "weight", il), {n_embd, n_ff}, 0);
        layer.ffn_gate_b = optional(LLM_TENSOR_FFN_GATE, "bias", n_ff);
        norms.up         = optional(LLM_TENSOR_FFN_UP_NORM_IN, "weight", n_embd);
        layer.ffn_up     = create_tensor(tn(LLM_TENSOR_FFN_UP, "weight", il), {n_embd, n_ff}, 0);
        layer.ffn_up_b   = optional(LLM_TENSOR_FFN_UP, "bias", n_ff);
        if (sub_norm) {
            layer.ffn_sub_norm = create_tensor(tn(LLM_TENSOR_FFN_SUB_NORM, "weight", il), {n_ff}, 0);
        }
        norms.down       = optional(LLM_TENSOR_FFN_DOWN_NORM_IN, "weight", n_ff);
        layer.ffn_down   = create_tensor(tn(LLM_TENSOR_FFN_DOWN, "weight", il), {n_ff, n_embd}, 0);
        layer.ffn_down_b = optional(LLM_TENSOR_FFN_DOWN, "bias", n_embd);
    }
}

std::unique_ptr<llm_graph_context> llama_model_bitnet_b158::build_arch_graph(const llm_graph_params & params) const {
    return std::make_unique<graph>(*this, params);
}

llama_model_bitnet_b158::graph::graph(const llama_model_bitnet_b158 & model, const llm_graph_params & params)
    : input_norms_graph(params, model.norm_in_eps), model(model) {
    GGML_ASSERT(hparams.n_embd_head_k() == hparams.n_embd_head_v());

    ggml_tensor *             residual  = build_inp_embd(model.tok_embd);
    ggml_tensor *             positions = build_inp_pos();
    llm_graph_input_attn_kv * cache     = build_attn_inp_kv();
    ggml_tensor *             wanted    = build_inp_out_ids();

    for (int il = 0; il < n_layer; ++il) {
        ggml_tensor * cur = attention(residual, positions, cache, il);
        if (il == n_layer - 1 && wanted != nullptr) {
            // After the last attention, only the tokens whose logits were requested matter.
            cur      = ggml_get_rows(ctx0, cur, wanted);
            residual = ggml_get_rows(ctx0, residual, wanted);
        }
        residual = ggml_add(ctx0, cur, residual);
        cb(residual, "ffn_inp", il);

        cur      = feed_forward(residual, il);
        residual = ggml_add(ctx0, cur, residual);
        residual = build_cvec(residual, il);
        cb(residual, "l_out", il);
    }

    ggml_tensor * cur = head(residual, model.output_norm, model.output);
    if (cur == nullptr) {
        return;
    }
    res->t_logits = cur;

    ggml_build_forward_expand(gf, cur);
}

// input and result: float32 [n_embd, n_tokens]
ggml_tensor * llama_model_bitnet_b158::graph::attention(ggml_tensor * input, ggml_tensor * positions,
                                                        llm_graph_input_attn_kv * cache, int il) {
    const llama_layer & layer       = model.layers[il];
    const input_norms & norms       = model.norms_in[il];
    const int64_t       n_embd_head = hparams.n_embd_head_k();
    ggml_tensor *       frequencies = model.get_rope_factors(cparams, il);

    ggml_tensor * cur = build_norm(input, layer.attn_norm, nullptr, LLM_NORM_RMS, il);
    cb(cur, "attn_norm", il);

    ggml_tensor * query = linear(cur, norms.q, layer.wq, layer.wq_b, "Qcur", il);
    ggml_tensor * key   = linear(cur, norms.k, layer.wk, layer.wk_b, "Kcur", il);
    ggml_tensor * value = linear(cur, norms.v, layer.wv, layer.wv_b, "Vcur", il);

    query = ggml_reshape_3d(ctx0, query, n_embd_head, n_head, n_tokens);
    key   = ggml_reshape_3d(ctx0, key, n_embd_head, n_head_kv, n_tokens);
    value = ggml_reshape_3d(ctx0, value, n_embd_head, n_head_kv, n_tokens);

    const auto norm_heads = [&]() {
        query = build_norm(query, layer.attn_q_norm, nullptr, LLM_NORM_RMS, il);
        key   = build_norm(key, layer.attn_k_norm, nullptr, LLM_NORM_RMS, il);
        cb(query, "Qcur_normed", il);
        cb(key, "Kcur_normed", il);
    };
    const auto rotate = [&](ggml_tensor * heads) {
        return ggml_rope_ext(ctx0, heads, positions, frequencies, n_rot, rope_type, n_ctx_orig, freq_base, freq_scale,
                             ext_factor, attn_factor, beta_fast, beta_slow);
    };
    if (model.qk_norm == qk_norm_at::before_rope) {
        norm_heads();
    }
    query = rotate(query);
    key   = rotate(key);
    cb(query, "Qcur", il);
    cb(key,   "Kcur", il);
    cb(value, "Vcur", il);
    if (model.qk_norm == qk_norm_at::after_rope) {
        norm_heads();
    }

    // No output matrix here: SubLN comes between the heads and it.
    cur = build_attn(cache, nullptr, nullptr, nullptr, query, key, value, nullptr, nullptr, nullptr,
                     1.0f / std::sqrt(float(n_embd_head)), il);
    cb(cur, "attn_heads", il);

    if (model.sub_norm) {
        cur = build_norm(cur, layer.attn_sub_norm, nullptr, LLM_NORM_RMS, il);
        cb(cur, "attn_sub_norm", il);
    }
    return linear(cur, norms.out, layer.wo, layer.wo_b, "attn_out", il);
}

// input and result: float32 [n_embd, n_tokens]
ggml_tensor * llama_model_bitnet_b158::graph::feed_forward(ggml_tensor * input, int il) {
    const llama_layer & layer = model.layers[il];
    const input_norms & norms = model.norms_in[il];

    ggml_tensor * cur = build_norm(input, layer.ffn_norm, nullptr, LLM_NORM_RMS, il);
    cb(cur, "ffn_norm", il);

    ggml_tensor * up   = linear(cur, norms.up, layer.ffn_up, layer.ffn_up_b, "ffn_up", il);
    ggml_tensor * gate = linear(cur, norms.gate, layer.ffn_gate, layer.ffn_gate_b, "ffn_gate", il);
    if (model.silu) {
        cur = ggml_swiglu_split(ctx0, gate, up);
    } else {
        cur = ggml_relu(ctx0, gate);
        cb(cur, "ffn_relu", il);
        cur = ggml_sqr(ctx0, cur);
        cb(cur, "ffn_sqr(relu)", il);
        cur = ggml_mul(ctx0, cur, up);
    }
    cb(cur, "ffn_gated", il);

    if (model.sub_norm) {
        cur = build_norm(cur, layer.ffn_sub_norm, nullptr, LLM_NORM_RMS, il);
        cb(cur, "ffn_sub_norm", il);
    }
    return linear(cur, norms.down, layer.ffn_down, layer.ffn_down_b, "ffn_out", il);
}
