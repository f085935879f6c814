// Tier avx2: 256-bit integer instructions, no VNNI (Haswell, Zen 1 and later).
//
// Instructions: vpmaddubsw ymm multiplies 32 codes (unsigned) with 32 activations (signed) and adds neighbours to 16 int16
//   lanes; a lane pair is a row. vpmaddwd by ones widens to int32.
// Algebra: sum(trit * q) = sum(code * q) - sum(q). A code of field 1 that is masked but not shifted down counts 4 times;
//   those int16 sums are shifted back, exactly, when they are widened.
// Bounds: one vpmaddubsw gives at most 2 * 2 * 128 = 512 a lane (-512..508), and 4 times that unshifted (-2048..2032).
//   tile: 64 additions (-32768..32512) are what int16 holds; it widens after tile_steps = 64.
//   direct: 8 chunks add 16 times 512 to one sum (8192) and 16 times -2048..2032 to the other (-32768..32512); shifted back
//   and added they stay within 2 * 8192.

#include "matmul.h"
#include "quantize.h"

#include <immintrin.h>

namespace ternary {
extern const Kernels avx2_kernels;

namespace {

inline __m256i load256(const void * p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline void store256(void * p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i *>(p), v); }

inline __m256i broadcast_quad(const int8_t * q) {
    int32_t quad;
    memcpy(&quad, q, sizeof quad);
    return _mm256_set1_epi32(quad);
}

// One accumulator, one register: without the empty statement GCC 12 copies sums to the stack in every step. (Look for ymm
// beside rsp in the loops when you change them.)
inline void add_products(__m256i & sum_i16x16, __m256i codes_u8x32, __m256i quad_s8x32) {
    sum_i16x16 = _mm256_add_epi16(sum_i16x16, _mm256_maddubs_epi16(codes_u8x32, quad_s8x32));
    __asm__("" : "+x"(sum_i16x16));
}

// sums[8] += the 8 rows of 16 int16 lanes
inline void add_widened(int32_t * sums, __m256i sum_i16x16) {
    const __m256i sum_i32x8 = _mm256_madd_epi16(sum_i16x16, _mm256_set1_epi16(1));
    store256(sums, _mm256_add_epi32(load256(sums), sum_i32x8));
}

struct Avx2 {
    static constexpr int direct_tokens = 4;
    static constexpr int tile_tokens = 6;  // 16 rows x 6 tokens: 12 accumulators, 2 weights, activations, product
    static constexpr int64_t tile_steps = 64;
    static constexpr int64_t direct_chunks = 8;
    static constexpr int64_t prefetch_bytes = 4096;

    TERNARY_NOINLINE static void unpack(const uint8_t * codes, int64_t chunks, uint8_t * bytes) {
        const __m256i mask = _mm256_set1_epi8(3);
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            for (int part = 0; part < 4; ++part) {
                const __m256i v = load256(codes + chunk * chunk_bytes + part * 32);
                uint8_t * out = bytes + chunk * fields * step_bytes + part * 32;
                store256(out, _mm256_and_si256(v, mask));
                store256(out + step_bytes, _mm256_and_si256(_mm256_srli_epi16(v, 2), mask));
                store256(out + 2 * step_bytes, _mm256_and_si256(_mm256_srli_epi16(v, 4), mask));
                store256(out + 3 * step_bytes, _mm256_and_si256(_mm256_srli_epi16(v, 6), mask));
            }
        }
    }

    // Rows in two halves of 16, steps in runs that int16 can hold.
    template <int T>
    static void tile(const uint8_t * bytes, int64_t steps, const int8_t * q, int64_t stride, int32_t * sums) {
        for (int64_t half = 0; half < 2; ++half) {
            for (int64_t step = 0; step < steps; step += tile_steps) {
                const int64_t steps_here = min64(tile_steps, steps - step);
                tile16<T>(bytes + step * step_bytes + half * 64, steps_here, q + step * step_cols, stride, sums + half * 16);
            }
        }
    }

    template <int T>
    TERNARY_NOINLINE static void tile16(const uint8_t * bytes, int64_t steps, const int8_t * q, int64_t stride, int32_t * sums) {
        __m256i sum_i16x16[T][2];
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            sum_i16x16[t][0] = sum_i16x16[t][1] = _mm256_setzero_si256();
        }
        for (int64_t step = 0; step < steps; ++step) {
            const __m256i codes0 = load256(bytes + step * step_bytes);
            const __m256i codes1 = load256(bytes + step * step_bytes + 32);
            TERNARY_UNROLL
            for (int t = 0; t < T; ++t) {
                const __m256i quad = broadcast_quad(q + t * stride + step * step_cols);
                add_products(sum_i16x16[t][0], codes0, quad);
                add_products(sum_i16x16[t][1], codes1, quad);
            }
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            add_widened(sums + t * panel_rows, sum_i16x16[t][0]);
            add_widened(sums + t * panel_rows + 8, sum_i16x16[t][1]);
        }
    }

    // T = 1 takes four groups of 8 rows at a time, 2 takes two, more take one: 8 accumulators or fewer.
    template <int T>
    static void direct(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        constexpr int groups = T == 1 ? 4 : T == 2 ? 2 : 1;
        for (int64_t i = 0; i < T * panel_rows; ++i) {
            sums[i] = 0;
        }
        for (int64_t chunk = 0; chunk < chunks; chunk += direct_chunks) {
            const int64_t chunks_here = min64(direct_chunks, chunks - chunk);
            for (int group = 0; group < 4; group += groups) {
                direct_groups<T, groups>(panel + chunk * chunk_bytes + group * 32, chunks_here, q + chunk * chunk_cols, stride,
                                         sums + group * 8);
            }
        }
    }

    template <int T, int G>
    TERNARY_NOINLINE static void direct_groups(const uint8_t * codes, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        const __m256i mask0 = _mm256_set1_epi8(3);
        const __m256i mask1 = _mm256_set1_epi8(12);
        __m256i plain_i16x16[T][G];       // fields 0 and 2
        __m256i times_four_i16x16[T][G];  // fields 1 and 3
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                plain_i16x16[t][g] = times_four_i16x16[t][g] = _mm256_setzero_si256();
            }
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = codes + chunk * chunk_bytes;
            _mm_prefetch(reinterpret_cast<const char *>(p + prefetch_bytes), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char *>(p + prefetch_bytes + 64), _MM_HINT_T0);
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                const __m256i low = load256(p + g * 32);
                const __m256i high = _mm256_srli_epi16(low, 4);
                const __m256i codes0 = _mm256_and_si256(low, mask0);
                const __m256i codes1 = _mm256_and_si256(low, mask1);
                const __m256i codes2 = _mm256_and_si256(high, mask0);
                const __m256i codes3 = _mm256_and_si256(high, mask1);
                TERNARY_UNROLL
                for (int t = 0; t < T; ++t) {
                    const int8_t * quads = q + t * stride + chunk * chunk_cols;
                    __m256i & plain = plain_i16x16[t][g];
                    __m256i & times_four = times_four_i16x16[t][g];
                    add_products(plain, codes0, broadcast_quad(quads));
                    add_products(times_four, codes1, broadcast_quad(quads + 4));
                    add_products(plain, codes2, broadcast_quad(quads + 8));
                    add_products(times_four, codes3, broadcast_quad(quads + 12));
                }
            }
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                const __m256i sum = _mm256_add_epi16(plain_i16x16[t][g], _mm256_srai_epi16(times_four_i16x16[t][g], 2));
                add_widened(sums + t * panel_rows + g * 8, sum);
            }
        }
    }

    static uint32_t max_abs_bits(const float * x, int64_t cols) {
        const __m256i sign_mask = _mm256_set1_epi32(static_cast<int>(float_sign_mask));
        __m256i max_u32x8 = _mm256_setzero_si256();
        int64_t i = 0;
        for (; i + 8 <= cols; i += 8) {
            max_u32x8 = _mm256_max_epu32(max_u32x8, _mm256_and_si256(load256(x + i), sign_mask));
        }
        alignas(32) uint32_t lanes[8];
        store256(lanes, max_u32x8);
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
        store256(lanes, sum_i32x8);
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

const Kernels avx2_kernels = {Tier::avx2, "avx2", quantize_token<Avx2>, matmul_f32<Avx2>, matmul_i32<Avx2>};

}  // namespace ternary
