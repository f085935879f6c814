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
#include "work_queue.h"

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

const char * at_stream(const ggml_tensor * t, int64_t stream) {
    return static_cast<const char *>(t->data) + stream * t->nb[3];
}

float parameter(const ggml_tensor * op, int index) {
    float value;
    std::memcpy(&value, op->op_params + index, sizeof(value));
    return value;
}

// Sequences at the same time; llama.cpp allows no more (LLAMA_MAX_SEQ).
constexpr int64_t most_streams = 256;

// The next token of one sequence. Each has a stream of the cache of its own.
attention::Token token_of(const ggml_tensor * op, int64_t stream) {
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
    token.q                 = reinterpret_cast<const float *>(at_stream(q, stream));
    token.q_head_stride     = static_cast<int64_t>(q->nb[2] / sizeof(float));
    token.k                 = reinterpret_cast<const uint16_t *>(at_stream(k, stream));
    token.v                 = reinterpret_cast<const uint16_t *>(at_stream(v, stream));
    token.k_head_stride     = static_cast<int64_t>(k->nb[2]) / half;
    token.k_position_stride = static_cast<int64_t>(k->nb[1]) / half;
    token.v_head_stride     = static_cast<int64_t>(v->nb[2]) / half;
    token.v_position_stride = static_cast<int64_t>(v->nb[1]) / half;
    token.mask              = mask == nullptr ? nullptr : reinterpret_cast<const uint16_t *>(at_stream(mask, stream));
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

bool is_ours(const ggml_tensor * op) {
    const ggml_tensor * q    = op->src[0];
    const ggml_tensor * k    = op->src[1];
    const ggml_tensor * v    = op->src[2];
    const ggml_tensor * mask = op->src[3];
    return q->type == GGML_TYPE_F32 && q->ne[1] == 1 && q->ne[3] <= most_streams && q->nb[0] == sizeof(float) &&
           q->ne[0] % attention::head_dim_multiple == 0 && q->ne[0] <= attention::max_head_dim &&
           are_halves(k, q) && are_halves(v, q) && k->ne[2] == v->ne[2] && k->ne[1] == v->ne[1] &&
           k->ne[1] > 0 && q->ne[2] % k->ne[2] == 0 && op->type == GGML_TYPE_F32 && ggml_is_contiguous(op) &&
           (mask == nullptr || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1 && mask->ne[3] == q->ne[3])) &&
           op->src[4] == nullptr && parameter(op, 1) == 0.0f && parameter(op, 2) == 0.0f;
}

// How a stream's positions are divided.
struct Parts {
    int64_t positions;
    int64_t length;  // of a part, in positions
    int64_t begin;   // the number of parts of the streams before
};

class AttentionTraits : public ggml::cpu::tensor_traits {
  public:
    bool work_size(int, const ggml_tensor * op, size_t & size) override {
        const ggml_tensor * q = op->src[0];
        size = q->ne[3] * attention::most_parts * attention::partial_floats(q->ne[2], q->ne[0]) * sizeof(float);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const ggml_tensor * q        = op->src[0];
        const int64_t       streams  = q->ne[3];
        const size_t        stride   = attention::partial_floats(q->ne[2], q->ne[0]);
        auto *              partials = static_cast<float *>(params->wdata);

        // The division into parts depends on a stream's own length only, so that a sequence gets the same sums alone
        // and among others.
        Parts   parts[most_streams];
        int64_t total = 0;
        for (int64_t stream = 0; stream < streams; ++stream) {
            attention::Token token = token_of(op, stream);
            leave_out_hidden_end(token);
            const int64_t length = attention::part_positions(token.positions);
            parts[stream]        = {token.positions, length, total};
            total += (token.positions + length - 1) / length;
        }
        WorkQueue queue(params, total);
        int64_t   stream = 0;  // pieces come in order
        for (int64_t begin, end; queue.next(begin, end);) {
            for (int64_t part = begin; part < end; ++part) {
                while (stream + 1 < streams && parts[stream + 1].begin <= part) {
                    ++stream;
                }
                const Parts &    of    = parts[stream];
                attention::Token token = token_of(op, stream);
                token.positions        = of.positions;
                const int64_t from     = (part - of.begin) * of.length;
                kernels()->attend(token, from, std::min(from + of.length, of.positions), partials + part * stride);
            }
        }
        ggml_barrier(params->threadpool);
        const int64_t heads = q->ne[2];
        for (stream = 0; stream < streams; ++stream) {
            const int64_t end = stream + 1 < streams ? parts[stream + 1].begin : total;
            attention::combine(partials + parts[stream].begin * stride, end - parts[stream].begin, heads, q->ne[0],
                               heads * params->ith / params->nth, heads * (params->ith + 1) / params->nth,
                               reinterpret_cast<float *>(static_cast<char *>(op->data) + stream * op->nb[3]));
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
