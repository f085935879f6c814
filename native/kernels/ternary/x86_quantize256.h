// The quantizer's loops (quantize.h) in 256-bit registers: for tiers whose files are built with AVX2.
#pragma once

#include "quantize.h"

#include <immintrin.h>

namespace ternary {
namespace {

struct Quantizer256 {
    static uint32_t max_abs_bits(const float * x, int64_t cols) {
        const __m256i sign_mask = _mm256_set1_epi32(static_cast<int>(float_sign_mask));
        __m256i max_u32x8 = _mm256_setzero_si256();
        int64_t i = 0;
        for (; i + 8 <= cols; i += 8) {
            const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + i));
            max_u32x8 = _mm256_max_epu32(max_u32x8, _mm256_and_si256(bits, sign_mask));
        }
        alignas(32) uint32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i *>(lanes), max_u32x8);
        uint32_t result = 0;
        for (uint32_t lane : lanes) {
            result = lane > result ? lane : result;
        }
        for (; i < cols; ++i) {
            const uint32_t bits = bits_of_float(x[i]) & float_sign_mask;
            result = bits > result ? bits : result;
        }
        return result;
    }

    // |x * scale| < 127.5, so the conversions to int16 and int8 saturate nothing.
    static int32_t round_scaled(const float * x, int64_t cols, float scale, int8_t * q) {
        const __m256 scale_f32x8 = _mm256_set1_ps(scale);
        __m256i sum_i32x8 = _mm256_setzero_si256();
        int64_t i = 0;
        for (; i + 8 <= cols; i += 8) {
            const __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale_f32x8));
            sum_i32x8 = _mm256_add_epi32(sum_i32x8, rounded);
            const __m128i i16x8 = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
            _mm_storel_epi64(reinterpret_cast<__m128i *>(q + i), _mm_packs_epi16(i16x8, i16x8));
        }
        alignas(32) int32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i *>(lanes), sum_i32x8);
        int32_t sum = 0;
        for (int32_t lane : lanes) {
            sum += lane;
        }
        for (; i < cols; ++i) {
            const int32_t rounded = _mm_cvtss_si32(_mm_mul_ss(_mm_set_ss(x[i]), _mm_set_ss(scale)));
            q[i] = static_cast<int8_t>(rounded);
            sum += rounded;
        }
        return sum;
    }
};

}  // namespace
}  // namespace ternary
