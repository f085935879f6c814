// Attention of one new token over the key-value cache, on plain memory: what decoding computes beside the weights.
//
//   s[p] = scale * sum_d(q[d] * k[p][d]) + mask[p];   out[d] = sum_p(exp(s[p]) * v[p][d]) / sum_p(exp(s[p]))
//
// for every query head, of which several may share one key-value head. Keys and values are float16, all sums float32. Parts
// of the context are attended to one by one, each leaving a partial result; these are then combined head by head.
// (Online softmax: Milakov and Gimelshein, arXiv:1805.02867.)
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

struct Kernels {
    const char * name;

    // Positions [begin, end) into `partial`, which is overwritten.
    void (*attend)(const Token & token, int64_t begin, int64_t end, float * partial);
};

// The kernels for this CPU; nullptr when there are none. `tier` is a name of native/kernels/ternary: the kernels use no
// instruction that this tier does without.
const Kernels * kernels_for(const char * tier);

// Heads [head_begin, head_end) of out, [heads][head_dim] one behind the other, from `count` partial results that lie
// partial_floats apart. A head that no position is visible to becomes 0.
void combine(const float * partials, int64_t count, int64_t heads, int64_t head_dim, int64_t head_begin, int64_t head_end,
             float * out);

}  // namespace attention
