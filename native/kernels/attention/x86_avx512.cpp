// AVX-512 F, with FMA and F16C beside it: sixteen floats a vector.

#include "attend.h"

#include <immintrin.h>

namespace attention {
extern const Kernels avx512_kernels;

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
};

}  // namespace

const Kernels avx512_kernels = {"avx512", attend<Avx512>};

}  // namespace attention
