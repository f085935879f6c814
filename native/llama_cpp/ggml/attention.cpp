// Attention in ggml. ggml asks every extra buffer type whether it computes an operation; ours answers for this one although
// no weight is involved.
//
// Why: at 100 tokens of context ggml's own takes a seventh of a 2B ternary model's decoding time, at 3,000 more than the
// weights (benchmarks/2b4t-shape.md): it reads keys and values once for every query head, one position at a time. Of a prompt
// of 2,048 tokens it takes 40% (benchmarks/attention.md).

#include "attention.h"

#include "attention/attention.h"
#include "attention/self_test.h"
#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "stock_switch.h"
#include "ternary_buffer.h"
#include "work_queue.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace {

const StockSwitch & wanted() {
    static const StockSwitch value("BITEXPORT_ATTENTION", "attention");
    return value;
}

const attention::Kernels * kernels() {
    static const attention::Kernels * const chosen = [] {
        const char * tier = wanted().ours() ? bitexport_tier_name() : nullptr;
        const attention::Kernels * best = tier == nullptr ? nullptr : attention::kernels_for(tier);
        const std::string          failure = best == nullptr ? "" : attention::self_test(*best);
        if (!failure.empty()) {
            GGML_LOG_WARN("bitexport: the attention kernels %s are skipped: they %s; using llama.cpp's own\n", best->name, failure.c_str());
            best = nullptr;
        }
        return best;
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

// So few tokens of one sequence at a time are computed one by one, as if each were decoded alone: a pass over drafted tokens
// (docs/drafts.md) computes what single tokens do, to the bit. bitexport/runtime/drafts drafts one less.
constexpr int64_t most_decoded = 32;

// Where a tensor of float16s has its rows.
struct Halves {
    const uint16_t * data;
    int64_t head_stride, position_stride;
    Halves(const ggml_tensor * t, int64_t stream)
        : data(reinterpret_cast<const uint16_t *>(at_stream(t, stream))),
          head_stride(static_cast<int64_t>(t->nb[2] / sizeof(ggml_fp16_t))),
          position_stride(static_cast<int64_t>(t->nb[1] / sizeof(ggml_fp16_t))) {}
};

// One token. Each sequence may have a stream of the cache of its own.
attention::Token token_of(const ggml_tensor * op, int64_t stream, int64_t query) {
    const ggml_tensor * q    = op->src[0];
    const ggml_tensor * mask = op->src[3];
    const Halves        k(op->src[1], stream), v(op->src[2], stream);

    attention::Token token{};
    token.head_dim          = q->ne[0];
    token.heads             = q->ne[2];
    token.kv_heads          = op->src[1]->ne[2];
    token.positions         = op->src[1]->ne[1];
    token.q                 = reinterpret_cast<const float *>(at_stream(q, stream) + query * q->nb[1]);
    token.q_head_stride     = static_cast<int64_t>(q->nb[2] / sizeof(float));
    token.k                 = k.data;
    token.v                 = v.data;
    token.k_head_stride     = k.head_stride;
    token.k_position_stride = k.position_stride;
    token.v_head_stride     = v.head_stride;
    token.v_position_stride = v.position_stride;
    token.mask  = mask == nullptr ? nullptr
                                  : reinterpret_cast<const uint16_t *>(at_stream(mask, stream) + query * mask->nb[1]);
    token.scale = parameter(op, 0);
    return token;
}

// All tokens of a stream.
attention::Prompt prompt_of(const ggml_tensor * op, int64_t stream) {
    const ggml_tensor *    q    = op->src[0];
    const ggml_tensor *    mask = op->src[3];
    const attention::Token one  = token_of(op, stream, 0);

    attention::Prompt prompt{};
    prompt.head_dim          = one.head_dim;
    prompt.heads             = one.heads;
    prompt.kv_heads          = one.kv_heads;
    prompt.queries           = q->ne[1];
    prompt.positions         = one.positions;
    prompt.q                 = one.q;
    prompt.q_head_stride     = one.q_head_stride;
    prompt.q_query_stride    = static_cast<int64_t>(q->nb[1] / sizeof(float));
    prompt.k                 = one.k;
    prompt.v                 = one.v;
    prompt.k_head_stride     = one.k_head_stride;
    prompt.k_position_stride = one.k_position_stride;
    prompt.v_head_stride     = one.v_head_stride;
    prompt.v_position_stride = one.v_position_stride;
    prompt.mask              = one.mask;
    prompt.mask_stride       = mask == nullptr ? 0 : static_cast<int64_t>(mask->nb[1] / sizeof(ggml_fp16_t));
    prompt.scale             = one.scale;
    prompt.out               = reinterpret_cast<float *>(static_cast<char *>(op->data) + stream * op->nb[3]);
    prompt.out_query_stride  = static_cast<int64_t>(op->nb[2] / sizeof(float));
    return prompt;
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

bool is_ours(const ggml_tensor * op) {
    const ggml_tensor * q    = op->src[0];
    const ggml_tensor * k    = op->src[1];
    const ggml_tensor * v    = op->src[2];
    const ggml_tensor * mask = op->src[3];
    return q->type == GGML_TYPE_F32 && q->ne[1] > 0 && q->ne[3] <= most_streams && q->nb[0] == sizeof(float) &&
           q->ne[0] % attention::head_dim_multiple == 0 && q->ne[0] <= attention::max_head_dim &&
           are_halves(k, q) && are_halves(v, q) && k->ne[2] == v->ne[2] && k->ne[1] == v->ne[1] &&
           k->ne[1] > 0 && q->ne[2] % k->ne[2] == 0 && op->type == GGML_TYPE_F32 && ggml_is_contiguous(op) &&
           (mask == nullptr || (mask->type == GGML_TYPE_F16 && mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1] &&
            mask->ne[2] == 1 && mask->ne[3] == q->ne[3] && mask->nb[0] == sizeof(ggml_fp16_t))) &&
           op->src[4] == nullptr && parameter(op, 1) == 0.0f && parameter(op, 2) == 0.0f;
}

bool is_decoded(const ggml_tensor * op) {
    const ggml_tensor * q = op->src[0];
    return q->ne[1] <= most_decoded && q->ne[1] * q->ne[3] <= most_streams;
}

// How the positions of a token are divided.
struct Parts {
    int64_t positions;
    int64_t length;  // of a part, in positions
    int64_t count;
    int64_t begin;   // the number of parts of the tokens before
};

void decode(const ggml_compute_params * params, const ggml_tensor * op) {
    const ggml_tensor * q        = op->src[0];
    const int64_t       queries  = q->ne[1];
    const int64_t       tokens   = queries * q->ne[3];
    const size_t        stride   = attention::partial_floats(q->ne[2], q->ne[0]);
    auto *              partials = static_cast<float *>(params->wdata);

    // The division into parts depends on a token's own length only, so that it gets the same sums alone and among others.
    Parts   parts[most_streams];
    int64_t total = 0;
    for (int64_t i = 0; i < tokens; ++i) {
        attention::Token token = token_of(op, i / queries, i % queries);
        leave_out_hidden_end(token);
        const int64_t length = attention::part_positions(token.positions);
        const int64_t count  = (token.positions + length - 1) / length;
        parts[i]             = {token.positions, length, count, total};
        total += count;
    }
    // A part of all tokens after the other: tokens of one sequence find its keys and values in the caches.
    WorkQueue queue(params, total);
    int64_t   part = 0, i = 0, number = 0;
    for (int64_t begin, end; queue.next(begin, end);) {
        while (number < end) {
            const Parts & of = parts[i];
            if (part < of.count && number++ >= begin) {
                attention::Token token = token_of(op, i / queries, i % queries);
                token.positions        = of.positions;
                const int64_t from     = part * of.length;
                kernels()->attend(token, from, std::min(from + of.length, of.positions), partials + (of.begin + part) * stride);
            }
            if (++i == tokens) {
                i = 0;
                ++part;
            }
        }
    }
    ggml_barrier(params->threadpool);
    const int64_t heads = q->ne[2];
    for (i = 0; i < tokens; ++i) {
        attention::combine(partials + parts[i].begin * stride, parts[i].count, heads, q->ne[0],
                           heads * params->ith / params->nth, heads * (params->ith + 1) / params->nth,
                           reinterpret_cast<float *>(static_cast<char *>(op->data) + i / queries * op->nb[3] +
                                                     i % queries * op->nb[2]));
    }
}

void prefill(const ggml_compute_params * params, const ggml_tensor * op) {
    const int64_t           streams = op->src[0]->ne[3];
    const attention::Pieces pieces(*kernels(), prompt_of(op, 0), params->nth);  // of each stream
    char * const            scratch = static_cast<char *>(params->wdata) + params->ith * kernels()->scratch_bytes(op->src[0]->ne[0]);

    WorkQueue queue(params, pieces.count() * streams);  // pieces take different times
    for (int64_t begin, end; queue.next(begin, end);) {
        for (int64_t next = begin; next < end; ++next) {
            kernels()->prefill(prompt_of(op, next % streams), pieces[next / streams], scratch);
        }
    }
}

class AttentionTraits : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int threads, const ggml_tensor * op, size_t & size) override {
        const ggml_tensor * q = op->src[0];
        size = is_decoded(op) ? q->ne[1] * q->ne[3] * attention::most_parts *
                                    attention::partial_floats(q->ne[2], q->ne[0]) * sizeof(float)
                              : threads * kernels()->scratch_bytes(q->ne[0]);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        is_decoded(op) ? decode(params, op) : prefill(params, op);
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
