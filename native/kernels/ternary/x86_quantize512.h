// The quantizer's loops (quantize.h) in 512-bit registers: for tiers whose files are built with AVX-512 F, BW and VL.
#pragma once

#include "quantize.h"

#include <immintrin.h>

namespace ternary {
namespace {

struct Quantizer512 {
    static __mmask16 lanes_left(int64_t left) { return static_cast<__mmask16>(left >= 16 ? 0xffff : (1u << left) - 1); }

    static uint32_t max_abs_bits(const float * x, int64_t cols) {
        const __m512i sign_mask = _mm512_set1_epi32(static_cast<int>(float_sign_mask));
        __m512i max_u32x16 = _mm512_setzero_si512();
        for (int64_t i = 0; i < cols; i += 16) {
            const __m512i bits = _mm512_maskz_loadu_epi32(lanes_left(cols - i), x + i);
            max_u32x16 = _mm512_max_epu32(max_u32x16, _mm512_and_si512(bits, sign_mask));
        }
        return _mm512_reduce_max_epu32(max_u32x16);
    }

    static int32_t round_scaled(const float * x, int64_t cols, float scale, int8_t * q) {
        const __m512 scale_f32x16 = _mm512_set1_ps(scale);
        __m512i sum_i32x16 = _mm512_setzero_si512();
        for (int64_t i = 0; i < cols; i += 16) {
            const __mmask16 lanes = lanes_left(cols - i);
            const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), scale_f32x16);
            const __m512i rounded = _mm512_cvt_roundps_epi32(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            sum_i32x16 = _mm512_add_epi32(sum_i32x16, rounded);  // |rounded| <= 127, so nothing saturates below
            _mm_mask_storeu_epi8(q + i, lanes, _mm512_cvtsepi32_epi8(rounded));
        }
        return _mm512_reduce_add_epi32(sum_i32x16);
    }
};

}  // namespace
}  // namespace ternary
