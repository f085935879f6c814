// Tier avx2: 256-bit integer instructions, no VNNI (Haswell, Zen 1 and later).
//
// Instructions: vpmaddubsw ymm multiplies 32 codes (unsigned) with 32 activations (signed) and adds neighbours to 16 int16
//   lanes; a lane pair is a row. vpmaddwd by ones widens to int32.
// Algebra: sum(trit * q) = sum(code * q) - sum(q). A code of field 1 that is masked but not shifted down counts 4 times;
//   those int16 sums are shifted back, exactly, when they are widened.
// Bounds: one vpmaddubsw gives at most 2 * 2 * 128 = 512 a lane (-512..508), and 4 times that unshifted (-2048..2032).
//   A run of 8 chunks adds 16 of the latter (-32768..32512: what int16 holds), shifts them back (-8192..8128), adds 16 of
//   the former (-16384..16256), and widens. Where codes may be 3, a run is 4 chunks: 8 of -3072..3048, then 8 of -768..762.

#include "x86_grouped.h"
#include "x86_quantize256.h"

namespace ternary {
extern const Kernels avx2_kernels;

namespace {

// sums[8] += the 8 rows of 16 int16 lanes
inline void add_widened(int32_t * sums, __m256i sum_i16x16) {
    const __m256i sum_i32x8 = _mm256_madd_epi16(sum_i16x16, _mm256_set1_epi16(1));
    store256(sums, _mm256_add_epi32(load256(sums), sum_i32x8));
}

template <int64_t run_chunks>
struct Avx2Runs : Quantizer256 {
    static constexpr int tile_tokens = 6;  // 16 rows x 6 tokens: 12 accumulators, 2 weights, activations, a product
    static constexpr int64_t prefetch_bytes = 4096;

    using Vector = __m256i;
    using Floats = __m256;
    static constexpr int64_t max_group_chunks = 4;
    static constexpr int row_sets(int tokens) { return tokens <= 2 ? 4 : 2; }

    template <int64_t C, int T, int G>
    static TERNARY_INLINE void add_group(const uint8_t * codes, const int8_t * q, int64_t stride, __m256i (&sums)[T][G]) {
        add_both<T, G>(codes, C, q, stride, sums);  // as 16 of int16
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                sums[t][g] = _mm256_madd_epi16(sums[t][g], _mm256_set1_epi16(1));
            }
        }
    }

    // A panel is four groups of 8 rows; as many at a time as keep their accumulators within 12 registers.
    template <int T>
    static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        constexpr int groups = row_sets(T);
        for (int64_t i = 0; i < T * panel_rows; ++i) {
            sums[i] = 0;
        }
        for (int64_t chunk = 0; chunk < chunks; chunk += run_chunks) {
            const int64_t chunks_here = min64(run_chunks, chunks - chunk);
            for (int group = 0; group < 4; group += groups) {
                add_run<T, groups>(panel + chunk * chunk_bytes + group * 32, chunks_here, q + chunk * chunk_cols, stride,
                                   sums + group * 8);
            }
        }
    }

    template <int T, int G>
    TERNARY_NOINLINE static void add_run(const uint8_t * codes, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        __m256i sum_i16x16[T][G];
        add_both<T, G>(codes, chunks, q, stride, sum_i16x16);
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                add_widened(sums + t * panel_rows + g * 8, sum_i16x16[t][g]);
            }
        }
    }

    template <int T, int G>
    static TERNARY_INLINE void add_both(const uint8_t * codes, int64_t chunks, const int8_t * q, int64_t stride,
                                        __m256i (&sum_i16x16)[T][G]) {
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                sum_i16x16[t][g] = _mm256_setzero_si256();
            }
        }
        add_fields<1>(codes, chunks, q, stride, sum_i16x16);
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                sum_i16x16[t][g] = _mm256_srai_epi16(sum_i16x16[t][g], 2);
            }
        }
        add_fields<0>(codes, chunks, q, stride, sum_i16x16);
    }

    // Fields 0 and 2, or 1 and 3; the latter pair counts 4 times.
    template <int Field, int T, int G>
    static TERNARY_INLINE void add_fields(const uint8_t * codes, int64_t chunks, const int8_t * q, int64_t stride,
                                          __m256i (&sum_i16x16)[T][G]) {
        const __m256i mask = _mm256_set1_epi8(3 << (2 * Field));
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = codes + chunk * chunk_bytes;
            const int8_t * quads = q + chunk * chunk_cols + Field * step_cols;
            if constexpr (Field == 1) {
                prefetch(p + prefetch_bytes);
                prefetch(p + prefetch_bytes + 64);
            }
            add_quads(p, mask, 0, quads, stride, sum_i16x16);
            add_quads(p, mask, 4, quads + 2 * step_cols, stride, sum_i16x16);
        }
    }

    template <int T, int G>
    static TERNARY_INLINE void add_quads(const uint8_t * p, __m256i mask, int shift, const int8_t * quads, int64_t stride,
                                         __m256i (&sum_i16x16)[T][G]) {
        __m256i codes[G];
        TERNARY_UNROLL
        for (int g = 0; g < G; ++g) {
            codes[g] = load256(p + g * 32);
            codes[g] = _mm256_and_si256(shift == 0 ? codes[g] : _mm256_srli_epi16(codes[g], 4), mask);
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            const __m256i quad = broadcast_quad256(quads + t * stride);
            TERNARY_UNROLL
            for (int g = 0; g < G; ++g) {
                add_products_i16(sum_i16x16[t][g], codes[g], quad);
            }
        }
    }
};

using Avx2 = Avx2Runs<8>;
using GroupedAvx2 = Avx2Runs<4>;  // where codes may be 3

}  // namespace

const Kernels avx2_kernels = {Tier::avx2, "avx2", quantize_token<Avx2>,
                              {matmul_f32<Avx2>, matmul_i32<Avx2>},
                              {quantize_groups<Avx2>, matmul_grouped<GroupedX86<GroupedAvx2>>}};

}  // namespace ternary
