// The vector of AVX-512 F, with FMA and F16C beside it: sixteen floats.
#pragma once

#include <cstdint>
#include <immintrin.h>

namespace attention {
namespace {

struct Avx512 {
    using Vector = __m512;
    static constexpr int64_t width = 16;

    static Vector load(const float * p) { return _mm512_loadu_ps(p); }
    static void store(float * p, Vector v) { _mm512_storeu_ps(p, v); }
    static Vector zero() { return _mm512_setzero_ps(); }
    static Vector all(float x) { return _mm512_set1_ps(x); }
    static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
    static Vector add_product(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
    static Vector load_half(const uint16_t * p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static float float_of_half(uint16_t half) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half))); }
    static __m256 halves(Vector v) {
        const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
        return _mm256_add_ps(_mm512_castps512_ps256(v), high);
    }
    static void totals(Vector a, Vector b, Vector c, Vector d, float * out) {
        const __m256 both =
            _mm256_hadd_ps(_mm256_hadd_ps(halves(a), halves(b)), _mm256_hadd_ps(halves(c), halves(d)));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
    }

    // prefill: 24 sums, 3 parts of a row
    static constexpr int64_t tile_rows = 8, tile_vectors = 3;

    static Vector sub(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
    static Vector mul(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
    static Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
    static bool any_greater(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
    static Vector where_greater(Vector a, Vector b, Vector x, Vector y) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
    }
    static Vector shift_23(Vector a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23)); }

    static void transpose(Vector (&v)[width]) {
        Vector t[width];
        for (int i = 0; i < 16; i += 2) {  // pairs of rows, then of these, then quarters of a vector
            t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
            t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            const auto low = [&](int a, int b) {
                return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[a]), _mm512_castps_pd(t[b])));
            };
            const auto high = [&](int a, int b) {
                return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[a]), _mm512_castps_pd(t[b])));
            };
            v[i] = low(i, i + 2);
            v[i + 1] = high(i, i + 2);
            v[i + 2] = low(i + 1, i + 3);
            v[i + 3] = high(i + 1, i + 3);
        }
        for (int i = 0; i < 4; ++i) {  // v[4 r + i]: columns i, 4 + i, 8 + i, 12 + i of rows 4 r to 4 r + 3
            const Vector even_a = _mm512_shuffle_f32x4(v[i], v[4 + i], 0x88);
            const Vector odd_a = _mm512_shuffle_f32x4(v[i], v[4 + i], 0xdd);
            const Vector even_b = _mm512_shuffle_f32x4(v[8 + i], v[12 + i], 0x88);
            const Vector odd_b = _mm512_shuffle_f32x4(v[8 + i], v[12 + i], 0xdd);
            t[i] = _mm512_shuffle_f32x4(even_a, even_b, 0x88);
            t[4 + i] = _mm512_shuffle_f32x4(odd_a, odd_b, 0x88);
            t[8 + i] = _mm512_shuffle_f32x4(even_a, even_b, 0xdd);
            t[12 + i] = _mm512_shuffle_f32x4(odd_a, odd_b, 0xdd);
        }
        for (int i = 0; i < 16; ++i) {
            v[i] = t[i];
        }
    }
};

}  // namespace
}  // namespace attention
