// Attention while decoding, in ggml. ggml asks every extra buffer type whether it computes an operation; ours answers for
// this one although no weight is involved.
//
// Why: at 100 tokens of context ggml's own takes a seventh of a 2B ternary model's decoding time, at 3,000 more than the
// weights (benchmarks/2b4t-shape.md). It reads keys and values once for every query head, one position at a time.
//
// A few tokens of a sequence at once, as a pass over drafted tokens has them (docs/drafts.md), are attended to one by one, so
// that each gets bit for bit what it gets alone: the text is then the same with and without drafts.

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

const char * at_stream(const ggml_tensor * t, int64_t stream, int64_t row = 0) {
    return static_cast<const char *>(t->data) + stream * t->nb[3] + row * t->nb[1];
}

float parameter(const ggml_tensor * op, int index) {
    float value;
    std::memcpy(&value, op->op_params + index, sizeof(value));
    return value;
}

// Sequences at the same time; llama.cpp allows no more (LLAMA_MAX_SEQ).
constexpr int64_t most_streams = 256;

// Tokens of one sequence that are attended to one by one; bitexport/runtime/drafts/pace.py drafts one less.
constexpr int64_t most_tokens = 32;

// One of the next tokens of a sequence. Each sequence has a stream of the cache of its own.
attention::Token token_of(const ggml_tensor * op, int64_t stream, int64_t row) {
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
    token.q                 = reinterpret_cast<const float *>(at_stream(q, stream, row));
    token.q_head_stride     = static_cast<int64_t>(q->nb[2] / sizeof(float));
    token.k                 = reinterpret_cast<const uint16_t *>(at_stream(k, stream));
    token.v                 = reinterpret_cast<const uint16_t *>(at_stream(v, stream));
    token.k_head_stride     = static_cast<int64_t>(k->nb[2]) / half;
    token.k_position_stride = static_cast<int64_t>(k->nb[1]) / half;
    token.v_head_stride     = static_cast<int64_t>(v->nb[2]) / half;
    token.v_position_stride = static_cast<int64_t>(v->nb[1]) / half;
    token.mask              = mask == nullptr ? nullptr : reinterpret_cast<const uint16_t *>(at_stream(mask, stream, row));
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

bool are_halves(const ggml_tensor * t, const ggml_tensor * q) {
    return t->type == GGML_TYPE_F16 && t->ne[0] == q->ne[0] && t->ne[3] == q->ne[3] && t->nb[0] == sizeof(ggml_fp16_t);
}

// Without a mask, every token would see those after it.
bool is_few(const ggml_tensor * q, const ggml_tensor * mask) {
    return q->ne[1] == 1 || (q->ne[1] <= most_tokens && q->ne[3] == 1 && mask != nullptr && mask->ne[1] >= q->ne[1]);
}

bool is_ours(const ggml_tensor * op) {
    const ggml_tensor * q    = op->src[0];
    const ggml_tensor * k    = op->src[1];
    const ggml_tensor * v    = op->src[2];
    const ggml_tensor * mask = op->src[3];
    return q->type == GGML_TYPE_F32 && is_few(q, mask) && q->ne[3] <= most_streams && q->nb[0] == sizeof(float) &&
           q->ne[0] % attention::head_dim_multiple == 0 && q->ne[0] <= attention::max_head_dim &&
           are_halves(k, q) && are_halves(v, q) && k->ne[2] == v->ne[2] && k->ne[1] == v->ne[1] &&
           k->ne[1] > 0 && q->ne[2] % k->ne[2] == 0 && op->type == GGML_TYPE_F32 && ggml_is_contiguous(op) &&
           (mask == nullptr || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1 && mask->ne[3] == q->ne[3])) &&
           op->src[4] == nullptr && parameter(op, 1) == 0.0f && parameter(op, 2) == 0.0f;
}

// How the positions of a token are divided.
struct Parts {
    int64_t positions;
    int64_t length;  // of a part, in positions
    int64_t count;
    int64_t begin;   // the number of parts of the tokens before
};

class AttentionTraits : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int, const ggml_tensor * op, size_t & size) override {
        const ggml_tensor * q = op->src[0];
        size = q->ne[1] * q->ne[3] * attention::most_parts * attention::partial_floats(q->ne[2], q->ne[0]) * sizeof(float);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const ggml_tensor * q        = op->src[0];
        const int64_t       rows     = q->ne[1];
        const int64_t       tokens   = rows * q->ne[3];  // of one sequence or of several
        const size_t        stride   = attention::partial_floats(q->ne[2], q->ne[0]);
        auto *              partials = static_cast<float *>(params->wdata);

        // The division into parts depends on a token's own position only, so that it gets the same sums alone and among
        // others.
        Parts   parts[most_streams];
        int64_t total = 0, most = 0;
        for (int64_t i = 0; i < tokens; ++i) {
            attention::Token token = token_of(op, i / rows, i % rows);
            leave_out_hidden_end(token);
            const int64_t length = attention::part_positions(token.positions);
            const int64_t count  = (token.positions + length - 1) / length;
            parts[i]             = {token.positions, length, count, total};
            total += count;
            most = std::max(most, count);
        }
        // A part of all tokens after the other: tokens of one sequence find its keys and values in the caches.
        const int64_t first = total * params->ith / params->nth, last = total * (params->ith + 1) / params->nth;
        int64_t       done = 0;
        for (int64_t part = 0; part < most && done < last; ++part) {
            for (int64_t i = 0; i < tokens; ++i) {
                if (part >= parts[i].count || done++ < first || done > last) {
                    continue;
                }
                attention::Token token = token_of(op, i / rows, i % rows);
                token.positions        = parts[i].positions;
                const int64_t from     = part * parts[i].length;
                kernels()->attend(token, from, std::min(from + parts[i].length, parts[i].positions),
                                  partials + (parts[i].begin + part) * stride);
            }
        }
        ggml_barrier(params->threadpool);
        const int64_t heads = q->ne[2];
        for (int64_t i = 0; i < tokens; ++i) {
            char * out = static_cast<char *>(op->data) + i / rows * op->nb[3] + i % rows * op->nb[2];
            attention::combine(partials + parts[i].begin * stride, parts[i].count, heads, q->ne[0],
                               heads * params->ith / params->nth, heads * (params->ith + 1) / params->nth,
                               reinterpret_cast<float *>(out));
        }
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
