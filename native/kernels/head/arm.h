// The tiers of 64-bit ARM. `Isa` multiplies 4 rows times 4 columns of codes with four activations:
//
//   add_products<Step>(sums, codes, q)   sums[row] += code * q[4 * Step + col] over the columns; codes are below 64
//
// A register holds 4 rows of a step, a quarter of a line. The dot product of a sub-block begins with what q6_k's codes are too
// large by, is multiplied by the rows' scales and added: all in 32 bits, within the bounds of scalar.cpp.
// Untuned: written for the instruction set, run under emulation only.
#pragma once

#include "matmul.h"

#include <arm_neon.h>

namespace head {
namespace {

template <class Isa>
struct Arm {
    static constexpr int tile_tokens = 8;
    static constexpr int64_t lanes = 4;

    static HEAD_INLINE int32x4_t bytes_to_i32(const uint8_t * p) {
        int32_t four;
        __builtin_memcpy(&four, p, sizeof four);
        return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
    }

    // The codes of steps 4 * Quad .. 4 * Quad + 3 of a sub-block, four rows.
    template <class F, int Quad>
    static HEAD_INLINE void read_codes(const uint8_t * group, uint8x16_t (&codes)[4]) {
        if constexpr (F::bits == 6) {
            const uint8x16_t a = vld1q_u8(group), b = vld1q_u8(group + line), c = vld1q_u8(group + 2 * line);
            const uint8x16_t six = vdupq_n_u8(63);
            codes[0] = vandq_u8(a, six);
            codes[1] = vandq_u8(b, six);
            codes[2] = vandq_u8(c, six);
            const uint8x16_t ab = vorrq_u8(vshrq_n_u8(a, 6), vshlq_n_u8(vshrq_n_u8(b, 6), 2));
            codes[3] = vorrq_u8(ab, vshlq_n_u8(vshrq_n_u8(c, 6), 4));
            return;
        }
        HEAD_UNROLL
        for (int pair = 0; pair < 2; ++pair) {
            const uint8x16_t both = vld1q_u8(group + (2 * Quad + pair) * line);
            codes[2 * pair] = vandq_u8(both, vdupq_n_u8(15));
            codes[2 * pair + 1] = vshrq_n_u8(both, 4);
        }
        if constexpr (F::bits == 5) {
            const uint8x16_t high = vld1q_u8(group + 4 * line);
            HEAD_UNROLL
            for (int i = 0; i < 4; ++i) {
                const uint8x16_t bit = vandq_u8(vshlq_u8(high, vdupq_n_s8(static_cast<int8_t>(-(4 * Quad + i)))), vdupq_n_u8(1));
                codes[i] = vorrq_u8(codes[i], vshlq_n_u8(bit, 4));
            }
        }
    }

    template <class F, int Quad, int T>
    static HEAD_INLINE void add_quad(const uint8_t * group, const int8_t * q, int64_t stride, int32x4_t (&dots)[T]) {
        uint8x16_t codes_u8x16[4];
        read_codes<F, Quad>(group, codes_u8x16);
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            const int8x16_t q_s8x16 =
                vld1q_s8(q + t * stride * static_cast<int64_t>(sizeof(Activations)) + Quad * 4 * step_cols);
            Isa::template add_products<0>(dots[t], codes_u8x16[0], q_s8x16);
            Isa::template add_products<1>(dots[t], codes_u8x16[1], q_s8x16);
            Isa::template add_products<2>(dots[t], codes_u8x16[2], q_s8x16);
            Isa::template add_products<3>(dots[t], codes_u8x16[3], q_s8x16);
        }
    }

    template <class F, int T>
    HEAD_NOINLINE static void tile(const uint8_t * block, const Activations * activations, int64_t stride, float * sums) {
        for (int64_t row = 0; row < panel_rows; row += lanes) {
            rows_tile<F, T>(block + row / half_rows * F::half_bytes, row % half_rows, activations, stride, sums + row);
        }
    }

    // Rows lane .. lane + 3 of a half.
    template <class F, int T>
    static HEAD_INLINE void rows_tile(const uint8_t * half, int64_t lane, const Activations * activations, int64_t stride,
                                      float * sums) {
        int32x4_t sum_i32x4[T], min_i32x4[T];
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            sum_i32x4[t] = min_i32x4[t] = vdupq_n_s32(0);
        }
        for (int g = 0; g < F::groups; ++g) {
            const uint8_t * group = half + F::groups_at + g * F::group_bytes + 4 * lane;
            int32x4_t dot_i32x4[T];
            HEAD_UNROLL
            for (int t = 0; t < T; ++t) {
                dot_i32x4[t] = vdupq_n_s32(F::offset == 0 ? 0 : activations[t * stride].minus_32_sum16[g]);
            }
            static_assert(F::offset == 0 || (F::offset == 32 && F::groups == 16), "the line above");
            const int8_t * q = activations->q + g * F::steps * step_cols;
            add_quad<F, 0, T>(group, q, stride, dot_i32x4);
            if constexpr (F::steps == 8) {
                add_quad<F, 1, T>(group, q, stride, dot_i32x4);
            }
            const int32x4_t scale_i32x4 = bytes_to_i32(half + F::scales_at + g * half_rows + lane);
            HEAD_UNROLL
            for (int t = 0; t < T; ++t) {
                sum_i32x4[t] = vmlaq_s32(sum_i32x4[t], dot_i32x4[t], scale_i32x4);
            }
            if constexpr (F::has_mins) {
                const int32x4_t mins = bytes_to_i32(half + F::mins_at + g * half_rows + lane);  // below 64
                HEAD_UNROLL
                for (int t = 0; t < T; ++t) {
                    min_i32x4[t] = vmlaq_n_s32(min_i32x4[t], mins, activations[t * stride].sum32[g]);
                }
            }
        }
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            const float a = activations[t * stride].a;
            float * out = sums + t * panel_rows;
            float32x4_t y = vaddq_f32(vld1q_f32(out), times(sum_i32x4[t], half + 4 * lane, a));
            if constexpr (F::has_mins) {
                y = vsubq_f32(y, times(min_i32x4[t], half + F::dmin_at + 4 * lane, a));
            }
            vst1q_f32(out, y);
        }
    }

    // float(sum) * (d * a)
    static HEAD_INLINE float32x4_t times(int32x4_t sum_i32x4, const uint8_t * d, float a) {
        const float32x4_t d_f32x4 = vld1q_f32(reinterpret_cast<const float *>(d));
        return vmulq_f32(vcvtq_f32_s32(sum_i32x4), vmulq_f32(d_f32x4, vdupq_n_f32(a)));
    }
};

}  // namespace
}  // namespace head
