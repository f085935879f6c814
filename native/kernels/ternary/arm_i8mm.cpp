// Tier i8mm: NEON with smmla (Cortex-A510, A710, Neoverse N2, V1, Apple M2 and later). Up to three tokens it is the kernel
// of dotprod, arm_dot.h; from four on:
//
// Instructions: smmla multiplies 2 rows x 8 columns of codes with 8 columns x 2 tokens of activations, all signed bytes, and
//   adds 8 products to each of 2 x 2 int32 lanes: twice the multiply-adds of sdot.
//   16 packed bytes are four rows by four columns of each field. zip1 of these bytes and the same shifted right by one
//   field lays fields 0 and 1 (and, four bits up, fields 2 and 3) of two rows side by side: 8 columns a row. So
//   of every 16 columns of four rows, a shift, two zips and six more instructions make the four operands.
//   With two or three tokens that costs more than sdot's half of the work; hence the border at four.
// Algebra: sum(trit * q) = sum(code * q) - sum(q).
// Bound, for max_cols = 65536: a sum over codes is at most 2 * 128 * 65536 = 2^24.
// Untuned: written for the instruction set, run under emulation only.

#include "arm_dot.h"

namespace ternary {
extern const Kernels i8mm_kernels;

namespace {

// One accumulator, one register: see x86_common.h. (Look for q registers beside sp in the loops when you change this.)
inline void add_octets(int32x4_t & sum_i32x2x2, uint8x16_t codes_u8x2x8, int8x16_t octets_s8x2x8) {
    sum_i32x2x2 = vmmlaq_s32(sum_i32x2x2, vreinterpretq_s8_u8(codes_u8x2x8), octets_s8x2x8);
    __asm__("" : "+w"(sum_i32x2x2));
}

inline uint8x16_t zip_low(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}

inline uint8x16_t zip_high(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}

struct I8mm : QuantizerNeon {
    static constexpr int tile_tokens = 8;  // 8 rows x 8 tokens: 16 accumulators, 8 octets, 4 codes, a mask
    static constexpr int64_t run_chunks = 32;
    static constexpr int64_t prefetch_bytes = 1024;

    // A panel is eight groups of four rows; as many at a time as keep their accumulators within 16 registers.
    template <int T>
    static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        if constexpr (T <= 3) {
            Dot::tile<T>(panel, chunks, q, stride, sums);
        } else {
            constexpr int groups = T == 4 ? 4 : 2;
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
    }

    // Tokens in pairs; an odd last one is its own partner.
    template <int T, int G>
    TERNARY_NOINLINE static void add_run(const uint8_t * codes, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        constexpr int P = (T + 1) / 2;
        const uint8x16_t mask = vdupq_n_u8(3);
        int32x4_t rows01_i32x2x2[G][P];
        int32x4_t rows23_i32x2x2[G][P];
        TERNARY_UNROLL
        for (int g = 0; g < G; ++g) {
            TERNARY_UNROLL
            for (int pair = 0; pair < P; ++pair) {
                rows01_i32x2x2[g][pair] = rows23_i32x2x2[g][pair] = vdupq_n_s32(0);
            }
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = codes + chunk * chunk_bytes;
            __builtin_prefetch(p + prefetch_bytes);
            __builtin_prefetch(p + prefetch_bytes + 64);
            int8x16_t low_octets[P];
            int8x16_t high_octets[P];
            load_octets<T>(q + chunk * chunk_cols, stride, low_octets, high_octets);
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                const uint8x16_t bytes = vld1q_u8(p + g * 16);
                const uint8x16_t next_field = vshrq_n_u8(bytes, 2);
                const uint8x16_t rows01 = zip_low(bytes, next_field);
                const uint8x16_t rows23 = zip_high(bytes, next_field);
                add_pairs(vandq_u8(rows01, mask), low_octets, rows01_i32x2x2[g]);
                add_pairs(vandq_u8(rows23, mask), low_octets, rows23_i32x2x2[g]);
                add_pairs(vandq_u8(vshrq_n_u8(rows01, 4), mask), high_octets, rows01_i32x2x2[g]);
                add_pairs(vandq_u8(vshrq_n_u8(rows23, 4), mask), high_octets, rows23_i32x2x2[g]);
            }
        }
        TERNARY_UNROLL
        for (int g = 0; g < G; ++g) {
            TERNARY_UNROLL
            for (int t = 0; t < T; ++t) {
                const int32x4_t rows01 = rows01_i32x2x2[g][t / 2];
                const int32x4_t rows23 = rows23_i32x2x2[g][t / 2];
                const int32x4_t sum_i32x4 = t % 2 == 0 ? vuzp1q_s32(rows01, rows23) : vuzp2q_s32(rows01, rows23);
                int32_t * out = sums + t * panel_rows + g * 4;
                vst1q_s32(out, vaddq_s32(vld1q_s32(out), sum_i32x4));
            }
        }
    }

    // Columns 0..7 and 8..15 of each pair of tokens, one token after the other.
    template <int T, int P>
    static TERNARY_INLINE void load_octets(const int8_t * q, int64_t stride, int8x16_t (&low)[P], int8x16_t (&high)[P]) {
        TERNARY_UNROLL
        for (int pair = 0; pair < P; ++pair) {
            const int second = 2 * pair + 1 < T ? 2 * pair + 1 : 2 * pair;
            const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(q + 2 * pair * stride));
            const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(q + second * stride));
            low[pair] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
            high[pair] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
        }
    }

    template <int P>
    static TERNARY_INLINE void add_pairs(uint8x16_t codes_u8x2x8, const int8x16_t (&octets)[P], int32x4_t (&sum_i32x2x2)[P]) {
        TERNARY_UNROLL
        for (int pair = 0; pair < P; ++pair) {
            add_octets(sum_i32x2x2[pair], codes_u8x2x8, octets[pair]);
        }
    }
};

}  // namespace

const Kernels i8mm_kernels = {Tier::i8mm, "i8mm", quantize_token<I8mm>,
                              {matmul_f32<I8mm>, matmul_i32<I8mm>},
                              {quantize_groups<I8mm>, matmul_grouped<GroupByGroup<I8mm>>}};

}  // namespace ternary
