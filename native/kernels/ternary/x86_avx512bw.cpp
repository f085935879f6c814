// Tier avx512bw: AVX-512 F/BW/VL without VNNI (Skylake-X).
//
// Instructions: vpmaddubsw zmm multiplies 64 codes (unsigned) with 64 activations (signed) and adds neighbours to 32 int16
//   lanes; a lane pair is a row. vpmaddwd by ones widens to int32.
// Algebra: sum(trit * q) = sum(code * q) - sum(q). A code of field 1 or 3 stays two bits up and counts 4 times; those int16
//   sums are shifted back, exactly, when they are widened.
// Bounds: one vpmaddubsw gives at most 2 * 2 * 128 = 512 a lane (-512..508), and 4 times that unshifted (-2048..2032).
//   A run of 8 chunks adds 16 of the latter: -32768..32512, what int16 holds. Shifted back they are -8192..8128; with 16 of
//   the former -16384..16256. Where codes may be 3, a run is 4 chunks: 8 of -3072..3048 and 8 of -768..762.

#include "x86_grouped.h"
#include "x86_quantize512.h"

namespace ternary {
extern const Kernels avx512bw_kernels;

namespace {

template <int64_t run_chunks>
struct Avx512BwRuns : Quantizer512 {
    static constexpr int tile_tokens = 8;   // 16 accumulators; with 24, GCC 12 puts some on the stack
    static constexpr int split_tokens = 4;  // up to here two accumulators for each token and half: 16 again
    static constexpr int64_t prefetch_bytes = 4096;

    using Vector = __m512i;
    using Floats = __m512;
    static constexpr int64_t max_group_chunks = 4;
    static constexpr int row_sets(int) { return 2; }

    // The sums of fields 1 and 3 first, which are then shifted back.
    template <int64_t C, int T>
    static TERNARY_INLINE void add_group(const uint8_t * codes, const int8_t * q, int64_t stride, __m512i (&sums)[T][2]) {
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            sums[t][0] = sums[t][1] = _mm512_setzero_si512();
        }
        for (int64_t chunk = 0; chunk < C; ++chunk) {
            prefetch(codes + chunk * chunk_bytes + prefetch_bytes);
            prefetch(codes + chunk * chunk_bytes + prefetch_bytes + 64);
            add_field<1>(codes + chunk * chunk_bytes, q + chunk * chunk_cols, stride, sums);
            add_field<3>(codes + chunk * chunk_bytes, q + chunk * chunk_cols, stride, sums);
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            for (int half = 0; half < 2; ++half) {
                sums[t][half] = _mm512_srai_epi16(sums[t][half], 2);
            }
        }
        for (int64_t chunk = 0; chunk < C; ++chunk) {
            add_field<0>(codes + chunk * chunk_bytes, q + chunk * chunk_cols, stride, sums);
            add_field<2>(codes + chunk * chunk_bytes, q + chunk * chunk_cols, stride, sums);
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            for (int half = 0; half < 2; ++half) {
                sums[t][half] = _mm512_madd_epi16(sums[t][half], _mm512_set1_epi16(1));
            }
        }
    }

    template <int T>
    static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        for (int64_t i = 0; i < T * panel_rows; ++i) {
            sums[i] = 0;
        }
        for (int64_t chunk = 0; chunk < chunks; chunk += run_chunks) {
            add_run<T>(panel + chunk * chunk_bytes, min64(run_chunks, chunks - chunk), q + chunk * chunk_cols, stride, sums);
        }
    }

    // Few tokens: one pass over the codes, the sums of fields 1 and 3 apart. Many: fields 1 and 3 first, then their sums
    // are shifted back and the others added.
    template <int T>
    TERNARY_NOINLINE static void add_run(const uint8_t * codes, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        constexpr int split = T <= split_tokens ? 2 : 1;
        __m512i sum_i16x32[split][T][2];
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            sum_i16x32[0][t][0] = sum_i16x32[0][t][1] = _mm512_setzero_si512();
            sum_i16x32[split - 1][t][0] = sum_i16x32[split - 1][t][1] = _mm512_setzero_si512();
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = codes + chunk * chunk_bytes;
            prefetch(p + prefetch_bytes);
            prefetch(p + prefetch_bytes + 64);
            add_field<1>(p, q + chunk * chunk_cols, stride, sum_i16x32[split - 1]);
            add_field<3>(p, q + chunk * chunk_cols, stride, sum_i16x32[split - 1]);
            if constexpr (split == 2) {
                add_field<0>(p, q + chunk * chunk_cols, stride, sum_i16x32[0]);
                add_field<2>(p, q + chunk * chunk_cols, stride, sum_i16x32[0]);
            }
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            for (int half = 0; half < 2; ++half) {
                sum_i16x32[split - 1][t][half] = _mm512_srai_epi16(sum_i16x32[split - 1][t][half], 2);
            }
        }
        if constexpr (split == 1) {
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                add_field<0>(codes + chunk * chunk_bytes, q + chunk * chunk_cols, stride, sum_i16x32[0]);
                add_field<2>(codes + chunk * chunk_bytes, q + chunk * chunk_cols, stride, sum_i16x32[0]);
            }
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int half = 0; half < 2; ++half) {
                __m512i sum = sum_i16x32[0][t][half];
                if constexpr (split == 2) {
                    sum = _mm512_add_epi16(sum, sum_i16x32[1][t][half]);
                }
                int32_t * out = sums + t * panel_rows + half * 16;
                const __m512i sum_i32x16 = _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
                _mm512_store_si512(out, _mm512_add_epi32(_mm512_load_si512(out), sum_i32x16));
            }
        }
    }

    // Fields 1 and 3 count 4 times.
    template <int Field, int T>
    static TERNARY_INLINE void add_field(const uint8_t * p, const int8_t * quads, int64_t stride, __m512i (&sum_i16x32)[T][2]) {
        constexpr int place = Field % 2;
        const __m512i mask = _mm512_set1_epi8(3 << (2 * place));
        __m512i codes[2] = {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64)};
        TERNARY_UNROLL
        for (int half = 0; half < 2; ++half) {
            codes[half] = _mm512_and_si512(Field < 2 ? codes[half] : _mm512_srli_epi16(codes[half], 4), mask);
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            const __m512i quad = broadcast_quad512(quads + t * stride + Field * step_cols);
            add_products_i16(sum_i16x32[t][0], codes[0], quad);
            add_products_i16(sum_i16x32[t][1], codes[1], quad);
        }
    }
};

using Avx512Bw = Avx512BwRuns<8>;
using GroupedAvx512Bw = Avx512BwRuns<4>;  // where codes may be 3

}  // namespace

const Kernels avx512bw_kernels = {Tier::avx512bw, "avx512bw", quantize_token<Avx512Bw>,
                                  {matmul_f32<Avx512Bw>, matmul_i32<Avx512Bw>},
                                  {quantize_groups<Avx512Bw>, matmul_grouped<GroupedX86<GroupedAvx512Bw>>}};

}  // namespace ternary
