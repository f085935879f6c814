// Decoding: the loop over positions, once for every instruction set. `Isa` brings a vector of floats:
//
//   Vector, width                          the type, and how many floats it holds
//   load, store, zero, all(x), add, add_product(a, b, sum)
//   load_half(p)                           `width` float16s as floats
//   totals(a, b, c, d, out)                the sums of four vectors' lanes
//
// Sixteen positions at a time, and of these one key-value head after the other, as the cache lies in memory. Their keys
// become floats once for all heads that share them, then their values; 16 KiB at most, which stay in the first-level cache.
#pragma once

#include "layout.h"

namespace attention {
namespace {

constexpr int64_t block_positions = 16;
constexpr uint16_t half_negative_infinity = 0xfc00;

// Dim: the head's dimension, known to the compiler; 0: known at run time only.
template <class Isa, int64_t Dim>
struct Attend {
    using Vector = typename Isa::Vector;

    static int64_t dim(const Token & token) { return Dim == 0 ? token.head_dim : Dim; }

    // One head's running result, in the partial result itself.
    struct Head {
        float * data;
        float & largest() const { return data[0]; }
        float & sum() const { return data[1]; }
        float * values() const { return data + header_floats; }
    };

    static Head head_of(const Token & token, float * partial, int64_t head) {
        return {partial + head * head_floats(dim(token))};
    }

    struct Block {
        float mask[block_positions];  // no_score: hidden, or behind the last
        alignas(64) float rows[block_positions * max_head_dim];
    };

    // False when no position of the block is visible.
    static bool read_mask(const Token & token, int64_t first, int64_t last, Block & block) {
        bool any = false;
        for (int64_t i = 0; i < block_positions; ++i) {
            const int64_t position = first + i;
            const bool seen = position < last && (token.mask == nullptr || token.mask[position] != half_negative_infinity);
            block.mask[i] = !seen ? no_score : token.mask == nullptr ? 0.0f : Isa::float_of_half(token.mask[position]);
            any = any || seen;
        }
        return any;
    }

    // Rows of hidden positions become 0, whatever the cache holds there.
    static void read_rows(const Token & token, const uint16_t * from, int64_t stride, Block & block) {
        for (int64_t i = 0; i < block_positions; ++i) {
            float * row = block.rows + i * dim(token);
            if (block.mask[i] == no_score) {
                memset(row, 0, static_cast<size_t>(dim(token)) * sizeof(float));
                continue;
            }
            for (int64_t d = 0; d < dim(token); d += Isa::width) {
                Isa::store(row + d, Isa::load_half(from + i * stride + d));
            }
        }
    }

    // scores[i] = q . row i, before scale and mask
    static void score(const Token & token, const float * q, const Block & block, float * scores) {
        for (int64_t i = 0; i < block_positions; i += 4) {
            const float * row = block.rows + i * dim(token);
            Vector sums[4] = {Isa::zero(), Isa::zero(), Isa::zero(), Isa::zero()};
            for (int64_t d = 0; d < dim(token); d += Isa::width) {
                const Vector part = Isa::load(q + d);
                ATTENTION_UNROLL
                for (int64_t j = 0; j < 4; ++j) {
                    sums[j] = Isa::add_product(part, Isa::load(row + j * dim(token) + d), sums[j]);
                }
            }
            Isa::totals(sums[0], sums[1], sums[2], sums[3], scores + i);
        }
    }

    // The block's weights exp(s - largest) of one head; what was gathered before is scaled to the new largest score.
    static void weigh(const Token & token, const float * q, const Block & block, Head head, float * weights) {
        float scores[block_positions];
        score(token, q, block, scores);
        float largest = head.largest();
        for (int64_t i = 0; i < block_positions; ++i) {
            scores[i] = block.mask[i] == no_score ? no_score : token.scale * scores[i] + block.mask[i];
            largest = scores[i] > largest ? scores[i] : largest;
        }
        if (largest > head.largest()) {
            const float factor = exp_of_negative(head.largest() - largest);
            head.sum() *= factor;
            for (int64_t d = 0; d < dim(token); ++d) {
                head.values()[d] *= factor;
            }
            head.largest() = largest;
        }
        float sum = 0.0f;
        for (int64_t i = 0; i < block_positions; ++i) {
            weights[i] = exp_of_negative(scores[i] - largest);
        }
        for (int64_t i = 0; i < block_positions; ++i) {
            sum += weights[i];
        }
        head.sum() += sum;
    }

    static void gather(const Token & token, const float * weights, const Block & block, float * values) {
        Vector weight[block_positions];
        ATTENTION_UNROLL
        for (int64_t i = 0; i < block_positions; ++i) {
            weight[i] = Isa::all(weights[i]);
        }
        for (int64_t d = 0; d < dim(token); d += Isa::width) {
            Vector even = Isa::load(values + d), odd = Isa::zero();
            ATTENTION_UNROLL
            for (int64_t i = 0; i < block_positions; i += 2) {
                even = Isa::add_product(weight[i], Isa::load(block.rows + i * dim(token) + d), even);
                odd = Isa::add_product(weight[i + 1], Isa::load(block.rows + (i + 1) * dim(token) + d), odd);
            }
            Isa::store(values + d, Isa::add(even, odd));
        }
    }

    // One block's positions of one key-value head, for all query heads that share it.
    ATTENTION_NOINLINE static void attend_head(const Token & token, int64_t kv_head, int64_t first, Block & block,
                                               float * partial) {
        constexpr int64_t most_together = 16;  // heads whose weights wait for the values
        const int64_t group = token.heads / token.kv_heads;
        float weights[most_together * block_positions];
        for (int64_t begin = 0; begin < group; begin += most_together) {
            const int64_t end = begin + most_together < group ? begin + most_together : group;
            read_rows(token, token.k + kv_head * token.k_head_stride + first * token.k_position_stride,
                      token.k_position_stride, block);
            for (int64_t g = begin; g < end; ++g) {
                const int64_t head = kv_head * group + g;
                weigh(token, token.q + head * token.q_head_stride, block, head_of(token, partial, head),
                      weights + (g - begin) * block_positions);
            }
            read_rows(token, token.v + kv_head * token.v_head_stride + first * token.v_position_stride,
                      token.v_position_stride, block);
            for (int64_t g = begin; g < end; ++g) {
                gather(token, weights + (g - begin) * block_positions, block,
                       head_of(token, partial, kv_head * group + g).values());
            }
        }
    }

    static void run(const Token & token, int64_t begin, int64_t end, float * partial) {
        for (int64_t head = 0; head < token.heads; ++head) {
            const Head result = head_of(token, partial, head);
            memset(result.data, 0, static_cast<size_t>(head_floats(dim(token))) * sizeof(float));
            result.largest() = no_score;
        }
        Block block;
        for (int64_t first = begin; first < end; first += block_positions) {
            if (!read_mask(token, first, end, block)) {
                continue;
            }
            for (int64_t kv_head = 0; kv_head < token.kv_heads; ++kv_head) {
                attend_head(token, kv_head, first, block, partial);
            }
        }
    }
};

template <class Isa>
void attend(const Token & token, int64_t begin, int64_t end, float * partial) {
    switch (token.head_dim) {
        case 64: return Attend<Isa, 64>::run(token, begin, end, partial);
        case 128: return Attend<Isa, 128>::run(token, begin, end, partial);
        default: return Attend<Isa, 0>::run(token, begin, end, partial);
    }
}

}  // namespace
}  // namespace attention
