// AVX2, FMA and F16C (Haswell, Zen 1 and later): eight floats a vector.

#include "attend.h"

#include <immintrin.h>

namespace attention {
extern const Kernels avx2_kernels;

namespace {

struct Avx2 {
    using Vector = __m256;
    static constexpr int64_t width = 8;

    static Vector load(const float * p) { return _mm256_loadu_ps(p); }
    static void store(float * p, Vector v) { _mm256_storeu_ps(p, v); }
    static Vector zero() { return _mm256_setzero_ps(); }
    static Vector all(float x) { return _mm256_set1_ps(x); }
    static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
    static Vector add_product(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
    static Vector load_half(const uint16_t * p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static float float_of_half(uint16_t half) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half))); }
    static void totals(Vector a, Vector b, Vector c, Vector d, float * out) {
        const __m256 both = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
    }
};

}  // namespace

const Kernels avx2_kernels = {"avx2", attend<Avx2>};

}  // namespace attention
