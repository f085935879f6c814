// The products of prefill in float32: keys and values become floats once for all rows of a piece.
//
//   scores [key][lane]  = keys [key][d] * queries [d][lane]
//   results [d][lane]  += values [key][d] * weights [key][lane]
//
// Each is computed in tiles of `tile_rows` times a vector of `lanes`, one element of the left matrix at a time for all lanes.
// `Isa` brings tile_rows and tile_vectors, so many that the sums and what they are computed from fit its registers.
#pragma once

#include "prefill.h"

namespace attention {
namespace {

template <class I>
struct FloatProducts {
    using Isa = I;
    using Vector = typename Isa::Vector;
    static constexpr int64_t vectors = Isa::tile_vectors, tile_rows = Isa::tile_rows;
    static constexpr int64_t lanes = vectors * Isa::width, keys = 64;
    static constexpr int64_t rows_limit = 192, cached_floats = 192 * 128;
    static_assert(keys % tile_rows == 0 && head_dim_multiple % tile_rows == 0 && head_dim_multiple % Isa::width == 0);

    // A row of keys: known to the compiler, and no power of two, which would crowd few sets of the cache.
    static constexpr int64_t key_stride = max_head_dim + 16;

    struct Session {};

    static size_t query_bytes(int64_t dim) { return static_cast<size_t>(dim * lanes) * sizeof(float); }
    static size_t key_bytes(int64_t) { return static_cast<size_t>(keys * key_stride) * sizeof(float); }
    static size_t value_bytes(int64_t dim) { return static_cast<size_t>(keys * dim) * sizeof(float); }
    static size_t weight_bytes() { return static_cast<size_t>(keys * lanes) * sizeof(float); }

    static void pack_queries(const float * const * rows, int64_t dim, float factor, char * to) {
        auto * const queries = reinterpret_cast<float *>(to);
        const Vector by = Isa::all(factor);
        for (int64_t lane = 0; lane < lanes; lane += Isa::width) {
            for (int64_t d = 0; d < dim; d += Isa::width) {
                Vector square[Isa::width];
                for (int64_t i = 0; i < Isa::width; ++i) {
                    const float * const row = rows[lane + i];
                    square[i] = row == nullptr ? Isa::zero() : Isa::mul(Isa::load(row + d), by);
                }
                Isa::transpose(square);
                for (int64_t i = 0; i < Isa::width; ++i) {
                    Isa::store(queries + (d + i) * lanes + lane, square[i]);
                }
            }
        }
    }

    static void read_rows(const uint16_t * from, int64_t stride, const uint8_t * seen, int64_t dim, float * to,
                          int64_t to_stride) {
        for (int64_t key = 0; key < keys; ++key) {
            if (seen[key] == 0) {
                memset(to + key * to_stride, 0, static_cast<size_t>(dim) * sizeof(float));
                continue;
            }
            for (int64_t d = 0; d < dim; d += Isa::width) {
                Isa::store(to + key * to_stride + d, Isa::load_half(from + key * stride + d));
            }
        }
    }
    static void pack_keys(const uint16_t * from, int64_t stride, const uint8_t * seen, int64_t dim, char * to) {
        read_rows(from, stride, seen, dim, reinterpret_cast<float *>(to), key_stride);
    }
    static void pack_values(const uint16_t * from, int64_t stride, const uint8_t * seen, int64_t dim, char * to) {
        read_rows(from, stride, seen, dim, reinterpret_cast<float *>(to), dim);
    }

    // sums[row][lane] = or += sum of left[row * row_stride + step * step_stride] * right[step][lane] over the steps
    template <bool Adds>
    static inline __attribute__((always_inline)) void tile(const float * left, int64_t row_stride, int64_t step_stride,
                                                           const float * right, int64_t steps, float * sums) {
        Vector sum[tile_rows][vectors];
        ATTENTION_UNROLL
        for (int64_t row = 0; row < tile_rows; ++row) {
            ATTENTION_UNROLL
            for (int64_t v = 0; v < vectors; ++v) {
                sum[row][v] = Adds ? Isa::load(sums + row * lanes + v * Isa::width) : Isa::zero();
            }
        }
        for (int64_t step = 0; step < steps; ++step, left += step_stride, right += lanes) {
            Vector part[vectors];
            ATTENTION_UNROLL
            for (int64_t v = 0; v < vectors; ++v) {
                part[v] = Isa::load(right + v * Isa::width);
            }
            ATTENTION_UNROLL
            for (int64_t row = 0; row < tile_rows; ++row) {
                const Vector one = Isa::all(left[row * row_stride]);
                ATTENTION_UNROLL
                for (int64_t v = 0; v < vectors; ++v) {
                    sum[row][v] = Isa::add_product(one, part[v], sum[row][v]);
                }
            }
        }
        ATTENTION_UNROLL
        for (int64_t row = 0; row < tile_rows; ++row) {
            ATTENTION_UNROLL
            for (int64_t v = 0; v < vectors; ++v) {
                Isa::store(sums + row * lanes + v * Isa::width, sum[row][v]);
            }
        }
    }

    ATTENTION_NOINLINE static void scores(const char * queries, const char * packed, int64_t dim, int64_t begin,
                                          int64_t end, float * to) {
        const auto * const q = reinterpret_cast<const float *>(queries);
        const auto * const k = reinterpret_cast<const float *>(packed);
        for (int64_t key = begin / tile_rows * tile_rows; key < end; key += tile_rows) {
            tile<false>(k + key * key_stride, key_stride, 1, q, dim, to + key * lanes);
        }
    }

    static void put_weights(char * weights, int64_t key, int64_t vector, Vector a, Vector b) {
        auto * const at = reinterpret_cast<float *>(weights) + key * lanes + vector * Isa::width;
        Isa::store(at, a);
        Isa::store(at + lanes, b);
    }

    ATTENTION_NOINLINE static void gather(const char * packed, char * weights, int64_t dim, int64_t begin,
                                          int64_t end, float * results) {
        const auto * const v = reinterpret_cast<const float *>(packed) + begin * dim;
        const auto * const w = reinterpret_cast<const float *>(weights) + begin * lanes;
        for (int64_t d = 0; d < dim; d += tile_rows) {
            tile<true>(v + d, 1, dim, w, end - begin, results + d * lanes);
        }
    }
};

}  // namespace
}  // namespace attention
