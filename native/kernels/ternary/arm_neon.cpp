// Tier neon: what every 64-bit ARM has (Cortex-A53, A72 and the like, which lack the dot product).
//
// Instructions: smlal and smlal2 multiply 8 codes with 8 activations, both signed bytes, and add the products to 8 int16
//   lanes. 16 bytes are four rows by four columns, so a row is four lanes; saddlp and addp widen them and add the four.
// Algebra: sum(trit * q) = sum(code * q) - sum(q).
// Bounds: a product is within -256..254. A lane gets one from each field of a chunk, so 128 in a run of 32 chunks:
//   -32768..32512, what int16 holds. Then it is widened. Where codes may be 3, a product is within -384..381 and a run is 16
//   chunks: -24576..24384.
// Untuned: written for the instruction set, run under emulation only.

#include "arm_quantize.h"
#include "grouped_matmul.h"

namespace ternary {
extern const Kernels neon_kernels;

namespace {

// One accumulator, one register: see x86_common.h. (Look for q registers beside sp in the loops when you change this.)
inline void add_products(int16x8_t & rows01_i16x8, int16x8_t & rows23_i16x8, int8x16_t codes_s8x16, int8x16_t quad_s8x16) {
    rows01_i16x8 = vmlal_s8(rows01_i16x8, vget_low_s8(codes_s8x16), vget_low_s8(quad_s8x16));
    rows23_i16x8 = vmlal_high_s8(rows23_i16x8, codes_s8x16, quad_s8x16);
    __asm__("" : "+w"(rows01_i16x8), "+w"(rows23_i16x8));
}

// Columns 4 * field .. 4 * field + 3 of a token, in every 32-bit lane.
inline int8x16_t broadcast_quad(const int8_t * q) {
    int32_t quad;
    memcpy(&quad, q, sizeof quad);
    return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}

template <int Field>
inline int8x16_t codes_of(uint8x16_t bytes) {
    if constexpr (Field == 0) {
        return vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(3)));
    } else if constexpr (Field == 3) {
        return vreinterpretq_s8_u8(vshrq_n_u8(bytes, 6));
    } else {
        return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(bytes, 2 * Field), vdupq_n_u8(3)));
    }
}

template <int64_t run_chunks>
struct NeonRuns : QuantizerNeon {
    static constexpr int tile_tokens = 6;
    static constexpr int64_t prefetch_bytes = 1024;

    // A panel is eight groups of four rows; as many at a time as keep their accumulators within 24 registers.
    template <int T>
    static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        constexpr int groups = T == 1 ? 8 : T <= 3 ? 4 : 2;
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
        int16x8_t sum_i16x8[T][G][2];
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                sum_i16x8[t][g][0] = sum_i16x8[t][g][1] = vdupq_n_s16(0);
            }
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = codes + chunk * chunk_bytes;
            const int8_t * quads = q + chunk * chunk_cols;
            __builtin_prefetch(p + prefetch_bytes);
            __builtin_prefetch(p + prefetch_bytes + 64);
            add_field<0>(p, quads, stride, sum_i16x8);
            add_field<1>(p, quads, stride, sum_i16x8);
            add_field<2>(p, quads, stride, sum_i16x8);
            add_field<3>(p, quads, stride, sum_i16x8);
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                const int16x8_t * sum = sum_i16x8[t][g];
                int32_t * out = sums + t * panel_rows + g * 4;
                const int32x4_t sum_i32x4 = vpaddq_s32(vpaddlq_s16(sum[0]), vpaddlq_s16(sum[1]));
                vst1q_s32(out, vaddq_s32(vld1q_s32(out), sum_i32x4));
            }
        }
    }

    template <int Field, int T, int G>
    static TERNARY_INLINE void add_field(const uint8_t * p, const int8_t * quads, int64_t stride, int16x8_t (&sum_i16x8)[T][G][2]) {
        int8x16_t codes_s8x16[G];
        TERNARY_UNROLL
        for (int g = 0; g < G; ++g) {
            codes_s8x16[g] = codes_of<Field>(vld1q_u8(p + g * 16));
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            const int8x16_t quad_s8x16 = broadcast_quad(quads + t * stride + Field * step_cols);
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                add_products(sum_i16x8[t][g][0], sum_i16x8[t][g][1], codes_s8x16[g], quad_s8x16);
            }
        }
    }
};

using Neon = NeonRuns<32>;
using GroupedNeon = NeonRuns<16>;  // where codes may be 3

}  // namespace

const Kernels neon_kernels = {Tier::neon, "neon", quantize_token<Neon>,
                              {matmul_f32<Neon>, matmul_i32<Neon>},
                              {quantize_groups<Neon>, matmul_grouped<GroupByGroup<GroupedNeon>>}};

}  // namespace ternary
