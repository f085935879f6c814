// Attention over the key-value cache, on plain memory: what a model computes beside its weights.
//
//   s[p] = scale * sum_d(q[d] * k[p][d]) + mask[p];   out[d] = sum_p(exp(s[p]) * v[p][d]) / sum_p(exp(s[p]))
//
// for every query head, of which several may share one key-value head. Keys and values are float16, all sums float32.
//
// Decoding: one new token. Parts of the context are attended to one by one, each leaving a partial result; these are then
// combined head by head. Prefill: many tokens, divided into pieces of some queries and heads, each of which passes over the
// context once. (Online softmax: Milakov and Gimelshein, arXiv:1805.02867; its blocks: Dao et al., arXiv:2205.14135.)
//
// Nothing here starts threads, allocates or throws.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attention {

constexpr int64_t max_head_dim = 256;
constexpr int64_t head_dim_multiple = 16;

struct Token {
    int64_t head_dim;         // a multiple of 16, at most max_head_dim
    int64_t heads, kv_heads;  // heads is a multiple of kv_heads
    int64_t positions;
    const float * q;          // [heads][head_dim]
    int64_t q_head_stride;    // floats
    const uint16_t * k;       // float16 [kv_heads][positions][head_dim]
    const uint16_t * v;
    int64_t k_head_stride, k_position_stride, v_head_stride, v_position_stride;  // float16s
    const uint16_t * mask;    // float16 [positions], added to the scores; -infinity hides a position, whose keys and
                              // values may then be anything; nullptr: no mask
    float scale;
};

// Positions that one partial result is for. It follows from the length of the context alone, never from the number of
// threads, so that the order of every sum, and with it every bit of the result, is the same for all of them.
int64_t part_positions(int64_t positions);
constexpr int64_t most_parts = 32;

// Floats of one partial result: for each head the largest score, the sum, and head_dim weighted values.
size_t partial_floats(int64_t heads, int64_t head_dim);

// The tokens of a prompt, or as many of it as are evaluated together.
struct Prompt {
    int64_t head_dim, heads, kv_heads;  // as for a token
    int64_t queries, positions;
    const float * q;  // [heads][queries][head_dim]
    int64_t q_head_stride, q_query_stride;
    const uint16_t * k;
    const uint16_t * v;
    int64_t k_head_stride, k_position_stride, v_head_stride, v_position_stride;
    const uint16_t * mask;  // float16 [queries][positions]; nullptr: no mask. What every query of the prompt hides may be
                            // anything; what another query sees must not be NaN, which its weight 0 would not hide
    int64_t mask_stride;
    float scale;
    float * out;  // [queries][heads][head_dim]; 0 where no position is visible
    int64_t out_query_stride;
};

// Some queries of some heads that share one key-value head. What is computed for one query of one head does not depend on
// the piece, to the last bit.
struct Piece {
    int64_t head_begin, head_end, query_begin, query_end;
};

struct Kernels {
    const char * name;

    // Positions [begin, end) into `partial`, which is overwritten.
    void (*attend)(const Token & token, int64_t begin, int64_t end, float * partial);

    // A piece's part of prompt.out. `scratch` has scratch_bytes and need not be aligned. A piece has at most most_rows times
    // a head and a query; most fitting are multiples of `lanes`.
    void (*prefill)(const Prompt & prompt, const Piece & piece, void * scratch);
    size_t (*scratch_bytes)(int64_t head_dim);
    int64_t (*most_rows)(int64_t head_dim);
    int64_t lanes;
};

// The kernels for this CPU; nullptr when there are none. `tier` is a name of native/kernels/ternary: the kernels use no
// instruction that this tier does without.
const Kernels * kernels_for(const char * tier);

// How a prompt is divided into pieces for some threads: small enough that all of them end at about the same time. A later
// query usually sees more positions, so the last ones come first.
class Pieces {
  public:
    Pieces(const Kernels & kernels, const Prompt & prompt, int64_t threads);

    int64_t count() const { return blocks_ * head_groups_; }
    Piece operator[](int64_t index) const;

  private:
    int64_t group_, queries_;         // group_: heads that share a key-value head
    int64_t head_step_, query_step_;  // of a piece
    int64_t groups_per_kv_, head_groups_, blocks_;
};

// Heads [head_begin, head_end) of out, [heads][head_dim] one behind the other, from `count` partial results that lie
// partial_floats apart. A head that no position is visible to becomes 0.
void combine(const float * partials, int64_t count, int64_t heads, int64_t head_dim, int64_t head_begin, int64_t head_end,
             float * out);

}  // namespace attention
