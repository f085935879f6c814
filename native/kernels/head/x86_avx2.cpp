// Tier avx2: AVX2 (Haswell, Zen and later).
//
// Instructions: vpmaddubsw ymm adds two products u8 * s8 in each of 16 int16 lanes: codes unsigned, activations, four
//   columns broadcast, signed. Two such sums are added and vpmaddwd multiplies them by the rows' scales, int16 twice.
//   A register holds 8 rows, a quarter of the panel.
// Algebra: q6_k's value is code - 32: 32 * J is taken off, J = sum of scale * sum(q); J for the mins, too: vpmaddwd takes
//   two sub-blocks' scales or mins with their two sums of q.
// Bounds: 4 * 63 * 127 = 32004 fits int16 (and so the instruction's own saturation is never reached); the rest as in
//   scalar.cpp.

#include "matmul.h"

#include <immintrin.h>

#include <cstring>

namespace head {
extern const Kernels avx2_kernels;

namespace {

HEAD_INLINE __m256i load256(const void * p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
HEAD_INLINE __m256i bytes_to_i32(const void * p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(p)));
}

HEAD_INLINE __m256i broadcast32(const void * p) {
    int32_t value;
    memcpy(&value, p, sizeof value);
    return _mm256_set1_epi32(value);
}

// One accumulator, one register: see x86_avx512vnni.cpp.
HEAD_INLINE void keep(__m256i & sum) { __asm__("" : "+x"(sum)); }

struct Avx2 {
    static constexpr int tile_tokens = 4;

    // The codes of the steps 4 * Quad .. 4 * Quad + 3 of a sub-block.
    template <class F, int Quad>
    static HEAD_INLINE void read_codes(const uint8_t * group, __m256i (&codes_u8x32)[4]) {
        if constexpr (F::bits == 6) {
            __m256i a = load256(group), b = load256(group + line), c = load256(group + 2 * line);
            keep(a), keep(b), keep(c);
            const __m256i six = _mm256_set1_epi8(63), top = _mm256_set1_epi8(static_cast<char>(0xc0));
            codes_u8x32[0] = _mm256_and_si256(a, six);
            codes_u8x32[1] = _mm256_and_si256(b, six);
            codes_u8x32[2] = _mm256_and_si256(c, six);
            const __m256i ab = _mm256_or_si256(_mm256_srli_epi16(_mm256_and_si256(a, top), 2), _mm256_and_si256(b, top));
            const __m256i abc = _mm256_or_si256(_mm256_srli_epi16(ab, 2), _mm256_and_si256(c, top));
            codes_u8x32[3] = _mm256_srli_epi16(abc, 2);  // no byte has bits that would fall into the next
            return;
        }
        const __m256i nibble = _mm256_set1_epi8(15);
        HEAD_UNROLL
        for (int pair = 0; pair < 2; ++pair) {
            __m256i low = load256(group + (2 * Quad + pair) * line);
            keep(low);
            codes_u8x32[2 * pair] = _mm256_and_si256(low, nibble);
            codes_u8x32[2 * pair + 1] = _mm256_and_si256(_mm256_srli_epi16(low, 4), nibble);
        }
        if constexpr (F::bits == 5) {
            __m256i high = load256(group + 4 * line);
            keep(high);
            const __m256i fifth = _mm256_set1_epi8(16);
            HEAD_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int step = 4 * Quad + i;
                const __m256i moved = step < 4   ? _mm256_slli_epi16(high, 4 - step)
                                      : step > 4 ? _mm256_srli_epi16(high, step - 4)
                                                 : high;
                codes_u8x32[i] = _mm256_or_si256(codes_u8x32[i], _mm256_and_si256(moved, fifth));
            }
        }
    }

    template <class F, int Quad, int T>
    static HEAD_INLINE void add_quad(const uint8_t * group, __m256i scale_i16x16, const int8_t * q, int64_t stride,
                                     __m256i (&sum_i32x8)[T]) {
        __m256i codes_u8x32[4];
        read_codes<F, Quad>(group, codes_u8x32);
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            const int8_t * quad = q + t * stride * static_cast<int64_t>(sizeof(Activations)) + Quad * 16;
            HEAD_UNROLL
            for (int half = 0; half < 2; ++half) {
                const __m256i a = _mm256_maddubs_epi16(codes_u8x32[2 * half], broadcast32(quad + 8 * half));
                const __m256i b = _mm256_maddubs_epi16(codes_u8x32[2 * half + 1], broadcast32(quad + 8 * half + 4));
                const __m256i scaled = _mm256_madd_epi16(_mm256_add_epi16(a, b), scale_i16x16);
                sum_i32x8[t] = _mm256_add_epi32(sum_i32x8[t], scaled);
            }
            keep(sum_i32x8[t]);
        }
    }

    template <class F, int T>
    HEAD_NOINLINE static void tile(const uint8_t * block, const Activations * activations, int64_t stride, float * sums) {
        for (int quarter = 0; quarter < 4; ++quarter) {
            const int64_t lane = quarter % 2 * 8;
            quarter_tile<F, T>(block + quarter / 2 * F::half_bytes, lane, activations, stride, sums + quarter * 8);
        }
    }

    // Rows lane .. lane + 7 of a half.
    template <class F, int T>
    static HEAD_INLINE void quarter_tile(const uint8_t * half, int64_t lane, const Activations * activations, int64_t stride,
                                         float * sums) {
        const __m256i twice = _mm256_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8,
                                               9, 8, 9, 12, 13, 12, 13);
        __m256i sum_i32x8[T];
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            sum_i32x8[t] = _mm256_setzero_si256();
        }
        for (int g = 0; g < F::groups; ++g) {
            const uint8_t * group = half + F::groups_at + g * F::group_bytes + 4 * lane;
            const __m256i scale_i32x8 = bytes_to_i32(half + F::scales_at + g * half_rows + lane);
            const __m256i scale_i16x16 = _mm256_shuffle_epi8(scale_i32x8, twice);
            const int8_t * q = activations->q + g * F::steps * step_cols;
            add_quad<F, 0, T>(group, scale_i16x16, q, stride, sum_i32x8);
            if constexpr (F::steps == 8) {
                add_quad<F, 1, T>(group, scale_i16x16, q, stride, sum_i32x8);
            }
        }
        if constexpr (F::offset != 0) {
            __m256i offset_i32x8[T];
            sums_times<F::groups, T>(half + F::scales_at + lane, activations->sum16, stride, offset_i32x8);
            HEAD_UNROLL
            for (int t = 0; t < T; ++t) {
                sum_i32x8[t] = _mm256_sub_epi32(sum_i32x8[t], _mm256_slli_epi32(offset_i32x8[t], 5));
            }
            static_assert(F::offset == 32, "the shift above");
        }
        const __m256 d_f32x8 = _mm256_loadu_ps(reinterpret_cast<const float *>(half) + lane);
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            const __m256 product = times(sum_i32x8[t], d_f32x8, activations[t * stride].a);
            float * out = sums + t * panel_rows;
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), product));
        }
        if constexpr (F::has_mins) {
            __m256i min_i32x8[T];
            sums_times<F::groups, T>(half + F::mins_at + lane, activations->sum32, stride, min_i32x8);
            const __m256 dmin_f32x8 = _mm256_loadu_ps(reinterpret_cast<const float *>(half + F::dmin_at) + lane);
            HEAD_UNROLL
            for (int t = 0; t < T; ++t) {
                const __m256 product = times(min_i32x8[t], dmin_f32x8, activations[t * stride].a);
                float * out = sums + t * panel_rows;
                _mm256_storeu_ps(out, _mm256_sub_ps(_mm256_loadu_ps(out), product));
            }
        }
    }

    // float(sum) * (d * a)
    static HEAD_INLINE __m256 times(__m256i sum_i32x8, __m256 d_f32x8, float a) {
        return _mm256_mul_ps(_mm256_cvtepi32_ps(sum_i32x8), _mm256_mul_ps(d_f32x8, _mm256_set1_ps(a)));
    }

    // result[t] = sum over sub-blocks of factor * sum(q): factors [sub-blocks][16 rows], 8 rows of them
    template <int Groups, int T>
    static HEAD_INLINE void sums_times(const uint8_t * factors, const int16_t * sums, int64_t stride, __m256i (&result)[T]) {
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            result[t] = _mm256_setzero_si256();
        }
        for (int g = 0; g < Groups; g += 2) {
            const __m256i even = bytes_to_i32(factors + g * half_rows);
            const __m256i odd = _mm256_slli_epi32(bytes_to_i32(factors + (g + 1) * half_rows), 16);
            const __m256i both_i16x16 = _mm256_blend_epi16(even, odd, 0xaa);
            HEAD_UNROLL
            for (int t = 0; t < T; ++t) {
                const __m256i pair = broadcast32(sums + t * stride * static_cast<int64_t>(sizeof(Activations) / 2) + g);
                result[t] = _mm256_add_epi32(result[t], _mm256_madd_epi16(both_i16x16, pair));
                keep(result[t]);
            }
        }
    }
};

}  // namespace

const Kernels avx2_kernels = {"avx2", matmul<Avx2>};

}  // namespace head
