// The product of grouped weights in x86 tiers without 512-bit VNNI. `Isa` brings, for registers of type Vector that hold
// the sums of `lanes` rows each:
//
//   row_sets(tokens)                                  how many registers a token gets at a time
//   max_group_chunks                                  of a group that add_group takes, where codes may be 3
//   add_group<C>(codes, q, stride, sums[T][G])        sums = sum(code * q) of C chunks, T tokens and G registers of rows
//
// Longer groups are added up by the tile of `Isa`, as in grouped_matmul.h.
#pragma once

#include "grouped_matmul.h"
#include "x86_common.h"

namespace ternary {
namespace {

// Of 8 or 16 rows: see grouped_matmul.h for the float16 scales.
TERNARY_INLINE void load_scales(const uint8_t * p, __m256 & scales) {
    const __m256i halves = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    const __m256i bits = _mm256_and_si256(_mm256_slli_epi32(halves, 13), _mm256_set1_epi32(static_cast<int>(0x8fffe000u)));
    scales = _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0x1p112f));
}

// y += (sum + minus_sum) * (scales * step)
TERNARY_INLINE void add_floats(float * y, __m256i sum_i32x8, int32_t minus_sum, __m256 scales, float step) {
    const __m256 value = _mm256_cvtepi32_ps(_mm256_add_epi32(sum_i32x8, _mm256_set1_epi32(minus_sum)));
    const __m256 factor = _mm256_mul_ps(scales, _mm256_set1_ps(step));
    _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), _mm256_mul_ps(value, factor)));
}

#if defined(__AVX512BW__)
TERNARY_INLINE void load_scales(const uint8_t * p, __m512 & scales) { scales = _mm512_cvtph_ps(load256(p)); }

TERNARY_INLINE void add_floats(float * y, __m512i sum_i32x16, int32_t minus_sum, __m512 scales, float step) {
    const __m512 value = _mm512_cvtepi32_ps(_mm512_add_epi32(sum_i32x16, _mm512_set1_epi32(minus_sum)));
    const __m512 factor = _mm512_mul_ps(scales, _mm512_set1_ps(step));
    _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), _mm512_mul_ps(value, factor)));
}
#endif

template <class Isa>
struct GroupedX86 {
    static constexpr int tile_tokens = Isa::tile_tokens;
    static constexpr int64_t lanes = sizeof(typename Isa::Vector) / 4;

    template <int T>
    static void run(Grouped kind, const uint8_t * panel, const GroupedTokens & in, int64_t token, float * y) {
        if (kind == Grouped::q2_0) {
            tile<T, Grouped::q2_0>(panel, in, token, y);
        } else if constexpr (group_chunks(Grouped::tq2_0) <= Isa::max_group_chunks) {
            tile<T, Grouped::tq2_0>(panel, in, token, y);
        } else {
            grouped_tile<Isa, T>(kind, panel, in, token, y);
        }
    }

    template <int T, Grouped kind>
    TERNARY_NOINLINE static void tile(const uint8_t * panel, const GroupedTokens & in, int64_t token, float * y) {
        constexpr int sets = Isa::row_sets(T);
        for (int64_t i = 0; i < T * panel_rows; ++i) {
            y[i] = 0.0f;
        }
        constexpr int64_t groups_of_block = block_chunks(kind) / group_chunks(kind);
        const int8_t * q = in.q + token * in.stride;
        for (int64_t first = 0; first < in.groups; first += groups_of_block, panel += grouped_block_bytes(kind)) {
            for (int64_t row = 0; row < panel_rows; row += sets * lanes) {
                add_block<T, sets, kind>(panel, row, in, q + first * activation_group(kind), token * in.groups + first, y + row);
            }
        }
    }

    // Rows from `row` on and one block of columns. at: of the first token's first group.
    template <int T, int G, Grouped kind>
    static TERNARY_INLINE void add_block(const uint8_t * panel, int64_t row, const GroupedTokens & in, const int8_t * q, int64_t at,
                                         float * y) {
        constexpr int64_t chunks = group_chunks(kind);
        for (int64_t g = 0; g < block_chunks(kind) / chunks; ++g) {
            typename Isa::Vector sums[T][G];
            Isa::template add_group<chunks>(panel + scale_bytes + g * chunks * chunk_bytes + row * step_cols, q + g * activation_group(kind),
                                            in.stride, sums);
            typename Isa::Floats scales[G];
            TERNARY_UNROLL
            for (int set = 0; set < G; ++set) {
                load_scales(panel + 2 * (row + set * lanes), scales[set]);
            }
            TERNARY_UNROLL
            for (int t = 0; t < T; ++t) {
                const int32_t minus_sum = in.minus_sum[at + t * in.groups + g];
                const float step = in.step[at + t * in.groups + g];
                TERNARY_UNROLL
                for (int set = 0; set < G; ++set) {
                    add_floats(y + t * panel_rows + set * lanes, sums[t][set], minus_sum, scales[set], step);
                }
            }
        }
    }
};

}  // namespace
}  // namespace ternary
