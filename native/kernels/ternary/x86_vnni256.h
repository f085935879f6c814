// The 256-bit vpdpbusd kernel, for two tiers that differ in the encoding of that one instruction and in nothing else:
//
//   x86_avxvnni.cpp        VEX, `{vex} vpdpbusd`: CPUs with AVX-VNNI and no AVX-512 (Alder Lake, Sierra Forest and later)
//   x86_avx512vnni256.cpp  EVEX, `{evex} vpdpbusd`: CPUs with AVX-512 VL and VNNI
//
// The second exists so that the first is tested and timed where only AVX-512 is at hand: both files are built with -mavx2
// alone and name the instruction themselves, so the compiler gives them the same registers and the same loops.
//
// Instructions: vpdpbusd ymm adds four products u8 * s8 to each of 8 int32 lanes: codes are its unsigned operand,
//   activations, four columns broadcast to every lane, its signed one. A lane is a row.
// Algebra: sum(trit * q) = sum(code * q) - sum(q). Up to `split_tokens` tokens the codes of fields 1 and 3 stay where they
//   are, two bits up, and count 4 times; their sums have accumulators of their own and are shifted back, exactly.
// Bounds, for max_cols = 65536: a sum over codes is at most 2 * 128 * 65536 = 2^24. The sums that count 4 times take half
//   of the columns: 2^25. Inside the instruction 4 * 255 * 128 fits without saturation.
#pragma once

#include "grouped_matmul.h"
#include "x86_grouped.h"
#include "x86_quantize256.h"

namespace ternary {
namespace {

// Dot brings dot(sum_i32x8, codes_u8x32, quad_s8x32), the instruction.
template <class Dot>
struct Vnni256 : Quantizer256 {
    static constexpr int tile_tokens = 6;   // 16 rows x 6 tokens: 12 accumulators, 2 codes, activations, a mask
    static constexpr int split_tokens = 1;  // up to here two accumulators for each token and 8 rows fit in registers
    static constexpr int64_t run_chunks = 32;
    static constexpr int64_t prefetch_bytes = 4096;

    using Vector = __m256i;
    using Floats = __m256;
    static constexpr int64_t max_group_chunks = 16;
    static constexpr int row_sets(int tokens) { return tokens <= 2 ? 4 : 2; }

    template <int64_t C, int T, int G>
    static TERNARY_INLINE void add_group(const uint8_t * codes, const int8_t * q, int64_t stride, __m256i (&sum_i32x8)[T][G]) {
        add_chunks<T, G, T <= split_tokens ? 2 : 1>(codes, C, q, stride, sum_i32x8);
    }

    // A panel is four groups of 8 rows; as many at a time as keep their accumulators within 12 registers. Where it takes
    // two passes they alternate every run, while the run's codes are in the first-level cache.
    template <int T>
    static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        constexpr int groups = row_sets(T);
        constexpr int split = T <= split_tokens ? 2 : 1;
        for (int64_t i = 0; i < T * panel_rows; ++i) {
            sums[i] = 0;
        }
        for (int64_t chunk = 0; chunk < chunks; chunk += run_chunks) {
            const int64_t chunks_here = min64(run_chunks, chunks - chunk);
            for (int group = 0; group < 4; group += groups) {
                add_run<T, groups, split>(panel + chunk * chunk_bytes + group * 32, chunks_here, q + chunk * chunk_cols, stride,
                                          sums + group * 8);
            }
        }
    }

    template <int T, int G, int S>
    TERNARY_NOINLINE static void add_run(const uint8_t * codes, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        __m256i sum_i32x8[T][G];
        add_chunks<T, G, S>(codes, chunks, q, stride, sum_i32x8);
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                int32_t * out = sums + t * panel_rows + g * 8;
                store256(out, _mm256_add_epi32(load256(out), sum_i32x8[t][g]));
            }
        }
    }

    // Sums of T tokens, G groups of rows; S = 2: those of fields 1 and 3 apart until the end.
    template <int T, int G, int S>
    static TERNARY_INLINE void add_chunks(const uint8_t * codes, int64_t chunks, const int8_t * q, int64_t stride,
                                          __m256i (&sums)[T][G]) {
        __m256i sum_i32x8[S][T][G];
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                sum_i32x8[0][t][g] = _mm256_setzero_si256();
                sum_i32x8[S - 1][t][g] = _mm256_setzero_si256();
            }
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = codes + chunk * chunk_bytes;
            const int8_t * quads = q + chunk * chunk_cols;
            prefetch(p + prefetch_bytes);
            prefetch(p + prefetch_bytes + 64);
            add_field<0, S>(p, quads, stride, sum_i32x8[0]);
            add_field<1, S>(p, quads, stride, sum_i32x8[S - 1]);
            add_field<2, S>(p, quads, stride, sum_i32x8[0]);
            add_field<3, S>(p, quads, stride, sum_i32x8[S - 1]);
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                __m256i sum = sum_i32x8[0][t][g];
                if constexpr (S == 2) {
                    sum = _mm256_add_epi32(sum, _mm256_srai_epi32(sum_i32x8[1][t][g], 2));
                }
                sums[t][g] = sum;
            }
        }
    }

    template <int Field, int S, int T, int G>
    static TERNARY_INLINE void add_field(const uint8_t * p, const int8_t * quads, int64_t stride, __m256i (&sum_i32x8)[T][G]) {
        constexpr int place = Field % S;  // digits that the codes stay up
        const __m256i mask = _mm256_set1_epi8(3 << (2 * place));
        __m256i codes_u8x32[G];
        TERNARY_UNROLL
        for (int g = 0; g < G; ++g) {
            codes_u8x32[g] = _mm256_and_si256(_mm256_srli_epi16(load256(p + g * 32), 2 * (Field - place)), mask);
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            const __m256i quad_s8x32 = broadcast_quad256(quads + t * stride + Field * step_cols);
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                Dot::dot(sum_i32x8[t][g], codes_u8x32[g], quad_s8x32);
            }
        }
    }
};

}  // namespace
}  // namespace ternary
