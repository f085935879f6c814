// The quantizer's loops (quantize.h) in NEON, which every 64-bit ARM has.
#pragma once

#include "quantize.h"

#include <arm_neon.h>

namespace ternary {
namespace {

struct QuantizerNeon {
    static uint32_t max_abs_bits(const float * x, int64_t cols) {
        const uint32x4_t sign_mask = vdupq_n_u32(float_sign_mask);
        uint32x4_t max_u32x4 = vdupq_n_u32(0);
        int64_t i = 0;
        for (; i + 4 <= cols; i += 4) {
            max_u32x4 = vmaxq_u32(max_u32x4, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), sign_mask));
        }
        uint32_t result = vmaxvq_u32(max_u32x4);
        for (; i < cols; ++i) {
            const uint32_t bits = bits_of_float(x[i]) & float_sign_mask;
            result = bits > result ? bits : result;
        }
        return result;
    }

    // fcvtns rounds halves to even, whatever the rounding mode. |x * scale| < 127.5, so narrowing drops no digits.
    static int32_t round_scaled(const float * x, int64_t cols, float scale, int8_t * q) {
        int32x4_t sum_i32x4 = vdupq_n_s32(0);
        int64_t i = 0;
        for (; i + 8 <= cols; i += 8) {
            const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), scale));
            const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), scale));
            sum_i32x4 = vaddq_s32(sum_i32x4, vaddq_s32(low, high));
            vst1_s8(q + i, vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high))));
        }
        int32_t sum = vaddvq_s32(sum_i32x4);
        for (; i < cols; ++i) {
            const int32_t rounded = vcvtns_s32_f32(x[i] * scale);
            q[i] = static_cast<int8_t>(rounded);
            sum += rounded;
        }
        return sum;
    }
};

}  // namespace
}  // namespace ternary
