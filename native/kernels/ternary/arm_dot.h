// The kernel of tier dotprod, and of tier i8mm for few tokens.
//
// Instructions: sdot by element multiplies 16 codes with four activations, all signed bytes, and adds four products to each
//   of 4 int32 lanes. A lane is a row; the activations are one 32-bit element of a register that holds a whole chunk's, so
//   they are loaded once for its four fields and never broadcast.
// Algebra: sum(trit * q) = sum(code * q) - sum(q).
// Bound, for max_cols = 65536: a sum over codes is at most 2 * 128 * 65536 = 2^24.
// Untuned: written for the instruction set, run under emulation only.
#pragma once

#include "arm_quantize.h"
#include "grouped_matmul.h"

namespace ternary {
namespace {

// One accumulator, one register: see x86_common.h. (Look for q registers beside sp in the loops when you change this.)
template <int Field>
inline void add_products(int32x4_t & sum_i32x4, uint8x16_t codes_u8x16, int8x16_t quads_s8x16) {
    sum_i32x4 = vdotq_laneq_s32(sum_i32x4, vreinterpretq_s8_u8(codes_u8x16), quads_s8x16, Field);
    __asm__("" : "+w"(sum_i32x4));
}

struct Dot : QuantizerNeon {
    static constexpr int tile_tokens = 5;
    static constexpr int64_t run_chunks = 32;
    static constexpr int64_t prefetch_bytes = 1024;

    // A panel is eight groups of four rows; as many at a time as keep their accumulators within 24 registers. Where it takes
    // two passes they alternate every run, while the run's codes are in the first-level cache.
    template <int T>
    static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        constexpr int groups = T <= 3 ? 8 : 4;
        for (int64_t i = 0; i < T * panel_rows; ++i) {
            sums[i] = 0;
        }
        for (int64_t chunk = 0; chunk < chunks; chunk += run_chunks) {
            const int64_t chunks_here = min64(run_chunks, chunks - chunk);
            for (int group = 0; group < 8; group += groups) {
                add_run<T, groups>(panel + chunk * chunk_bytes + group * 16, chunks_here, q + chunk * chunk_cols, stride,
                                   sums + group * 4);
            }
        }
    }

    template <int T, int G>
    TERNARY_NOINLINE static void add_run(const uint8_t * codes, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        const uint8x16_t mask = vdupq_n_u8(3);
        int32x4_t sum_i32x4[G][T];
        TERNARY_UNROLL
        for (int g = 0; g < G; ++g) {
            TERNARY_UNROLL
            for (int t = 0; t < T; ++t) {
                sum_i32x4[g][t] = vdupq_n_s32(0);
            }
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = codes + chunk * chunk_bytes;
            __builtin_prefetch(p + prefetch_bytes);
            __builtin_prefetch(p + prefetch_bytes + 64);
            int8x16_t quads_s8x16[T];
            TERNARY_UNROLL
            for (int t = 0; t < T; ++t) {
                quads_s8x16[t] = vld1q_s8(q + t * stride + chunk * chunk_cols);
            }
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                const uint8x16_t bytes = vld1q_u8(p + g * 16);
                add_field<0>(vandq_u8(bytes, mask), quads_s8x16, sum_i32x4[g]);
                add_field<1>(vandq_u8(vshrq_n_u8(bytes, 2), mask), quads_s8x16, sum_i32x4[g]);
                add_field<2>(vandq_u8(vshrq_n_u8(bytes, 4), mask), quads_s8x16, sum_i32x4[g]);
                add_field<3>(vshrq_n_u8(bytes, 6), quads_s8x16, sum_i32x4[g]);
            }
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                int32_t * out = sums + t * panel_rows + g * 4;
                vst1q_s32(out, vaddq_s32(vld1q_s32(out), sum_i32x4[g][t]));
            }
        }
    }

    template <int Field, int T>
    static TERNARY_INLINE void add_field(uint8x16_t codes_u8x16, const int8x16_t (&quads_s8x16)[T], int32x4_t (&sum_i32x4)[T]) {
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            add_products<Field>(sum_i32x4[t], codes_u8x16, quads_s8x16[t]);
        }
    }
};

}  // namespace
}  // namespace ternary
