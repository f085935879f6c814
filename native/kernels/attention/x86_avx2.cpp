// AVX2, FMA and F16C (Haswell, Zen 1 and later): eight floats a vector.

#include "attend.h"
#include "float_products.h"

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

    // prefill: 12 sums, 3 parts of a row, an element for all lanes
    static constexpr int64_t tile_rows = 4, tile_vectors = 3;

    static Vector sub(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
    static Vector mul(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
    static Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
    static bool any_greater(Vector a, Vector b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
    static Vector where_greater(Vector a, Vector b, Vector x, Vector y) {
        return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
    }
    static Vector shift_23(Vector a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23)); }

    static void transpose(Vector (&v)[width]) {
        Vector t[width];
        for (int i = 0; i < 8; i += 2) {  // pairs of rows, then of these, then halves of a vector
            t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
            t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            v[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
            v[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
            v[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
            v[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            t[i] = _mm256_permute2f128_ps(v[i], v[4 + i], 0x20);
            t[4 + i] = _mm256_permute2f128_ps(v[i], v[4 + i], 0x31);
        }
        for (int i = 0; i < 8; ++i) {
            v[i] = t[i];
        }
    }
};

}  // namespace

const Kernels avx2_kernels = {
    "avx2",
    attend<Avx2>,
    Prefill<FloatProducts<Avx2>>::run,
    Prefill<FloatProducts<Avx2>>::scratch_bytes,
    Prefill<FloatProducts<Avx2>>::most_rows,
    FloatProducts<Avx2>::lanes,
};

}  // namespace attention
