// Attention while decoding, in ggml. ggml asks every extra buffer type whether it computes an operation; ours answers for
// this one although no weight is involved.
//
// Why: at 100 tokens of context ggml's own takes a seventh of a 2B ternary model's decoding time, at 3,000 more than the
// weights (benchmarks/2b4t-shape.md). It reads keys and values once for every query head, one position at a time.

#include "attention.h"

#include "attention/attention.h"
#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "stock_switch.h"
#include "ternary_buffer.h"

#include <algorithm>
#include <cstring>

namespace {

const StockSwitch & wanted() {
    static const StockSwitch value("BITEXPORT_ATTENTION", "attention");
    return value;
}

const attention::Kernels * kernels() {
    static const attention::Kernels * const chosen = [] {
        const char * tier = wanted().ours() ? bitexport_tier_name() : nullptr;
        return tier == nullptr ? nullptr : attention::kernels_for(tier);
    }();
    return chosen;
}

float parameter(const ggml_tensor * op, int index) {
    float value;
    std::memcpy(&value, op->op_params + index, sizeof(value));
    return value;
}

attention::Token token_of(const ggml_tensor * op) {
    const ggml_tensor * q    = op->src[0];
    const ggml_tensor * k    = op->src[1];
    const ggml_tensor * v    = op->src[2];
    const ggml_tensor * mask = op->src[3];
    constexpr int64_t   half = sizeof(ggml_fp16_t);

    attention::Token token{};
    token.head_dim          = q->ne[0];
    token.heads             = q->ne[2];
    token.kv_heads          = k->ne[2];
    token.positions         = k->ne[1];
    token.q                 = static_cast<const float *>(q->data);
    token.q_head_stride     = static_cast<int64_t>(q->nb[2] / sizeof(float));
    token.k                 = static_cast<const uint16_t *>(k->data);
    token.v                 = static_cast<const uint16_t *>(v->data);
    token.k_head_stride     = static_cast<int64_t>(k->nb[2]) / half;
    token.k_position_stride = static_cast<int64_t>(k->nb[1]) / half;
    token.v_head_stride     = static_cast<int64_t>(v->nb[2]) / half;
    token.v_position_stride = static_cast<int64_t>(v->nb[1]) / half;
    token.mask              = mask == nullptr ? nullptr : static_cast<const uint16_t *>(mask->data);
    token.scale             = parameter(op, 0);
    return token;
}

// The cache is longer than its content: without the hidden positions at its end, threads get equal shares.
void leave_out_hidden_end(attention::Token & token) {
    constexpr uint16_t hidden = 0xfc00;  // -infinity
    while (token.mask != nullptr && token.positions > 1 && token.mask[token.positions - 1] == hidden) {
        --token.positions;
    }
}

bool are_halves(const ggml_tensor * t, int64_t head_dim) {
    return t->type == GGML_TYPE_F16 && t->ne[0] == head_dim && t->ne[3] == 1 && t->nb[0] == sizeof(ggml_fp16_t);
}

bool is_ours(const ggml_tensor * op) {
    const ggml_tensor * q    = op->src[0];
    const ggml_tensor * k    = op->src[1];
    const ggml_tensor * v    = op->src[2];
    const ggml_tensor * mask = op->src[3];
    return q->type == GGML_TYPE_F32 && q->ne[1] == 1 && q->ne[3] == 1 && q->nb[0] == sizeof(float) &&
           q->ne[0] % attention::head_dim_multiple == 0 && q->ne[0] <= attention::max_head_dim &&
           are_halves(k, q->ne[0]) && are_halves(v, q->ne[0]) && k->ne[2] == v->ne[2] && k->ne[1] == v->ne[1] &&
           k->ne[1] > 0 && q->ne[2] % k->ne[2] == 0 && op->type == GGML_TYPE_F32 && ggml_is_contiguous(op) &&
           (mask == nullptr || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1 && mask->ne[3] == 1)) &&
           op->src[4] == nullptr && parameter(op, 1) == 0.0f && parameter(op, 2) == 0.0f;
}

class AttentionTraits : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int, const ggml_tensor * op, size_t & size) override {
        const ggml_tensor * q = op->src[0];
        size = attention::most_parts * attention::partial_floats(q->ne[2], q->ne[0]) * sizeof(float);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        attention::Token token = token_of(op);
        leave_out_hidden_end(token);
        const size_t  stride   = attention::partial_floats(token.heads, token.head_dim);
        auto *        partials = static_cast<float *>(params->wdata);
        const int64_t length   = attention::part_positions(token.positions);
        const int64_t parts    = (token.positions + length - 1) / length;
        for (int64_t part = parts * params->ith / params->nth; part < parts * (params->ith + 1) / params->nth; ++part) {
            kernels()->attend(token, part * length, std::min((part + 1) * length, token.positions),
                              partials + part * stride);
        }
        ggml_barrier(params->threadpool);
        attention::combine(partials, parts, token.heads, token.head_dim, token.heads * params->ith / params->nth,
                           token.heads * (params->ith + 1) / params->nth, static_cast<float *>(op->data));
        return true;
    }
};

}  // namespace

ggml::cpu::tensor_traits * bitexport_attention_traits(const ggml_tensor * op) {
    static AttentionTraits traits;
    return op->op == GGML_OP_FLASH_ATTN_EXT && kernels() != nullptr && is_ours(op) ? &traits : nullptr;
}

const char * bitexport_attention_error(void) {
    return wanted().error();
}
