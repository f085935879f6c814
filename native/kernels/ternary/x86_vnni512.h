// The kernels of 512 bits with VNNI for the layout two_bit, once for every tier that has them. Opened by the algebra in
// x86_avx512vnni.cpp.
#pragma once

#include "grouped_matmul.h"
#include "x86_common.h"
#include "x86_quantize512.h"

namespace ternary {
namespace {

struct Avx512Vnni : Quantizer512 {
    static constexpr int tile_tokens = 12;      // 24 accumulators, 2 chunks, 2 of their fields, mask, activations
    static constexpr int unshifted_tokens = 3;  // up to here four accumulators for each token and half fit in registers

    // Alone, a token leaves the reading to the hardware's prefetcher; more tokens take longer over a chunk than it waits.
    static constexpr int64_t prefetch_bytes(int tokens) { return tokens == 1 ? 512 : 4096; }

    // codes of `field`, each in the low bits of its byte
    template <int Field>
    static __m512i codes_of(__m512i chunk) {
        return _mm512_and_si512(Field == 0 ? chunk : _mm512_srli_epi16(chunk, 2 * Field), _mm512_set1_epi8(3));
    }

    template <int T>
    TERNARY_NOINLINE static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        __m512i sum_i32x16[T][2];
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            sum_i32x16[t][0] = sum_i32x16[t][1] = _mm512_setzero_si512();
        }
        add_chunks<T, prefetch_bytes(T)>(panel, chunks, q, stride, sum_i32x16);
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            _mm512_store_si512(sums + t * panel_rows, sum_i32x16[t][0]);
            _mm512_store_si512(sums + t * panel_rows + 16, sum_i32x16[t][1]);
        }
    }

    // Memory-bound batches: a mask for each code and no shift; 8 accumulators a token hide the latency.
    template <int T, int64_t Ahead>
    static TERNARY_INLINE void add_unshifted(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride,
                                             __m512i (&sum_i32x16)[T][2]) {
        __m512i of_field[T][2][4];
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int field = 0; field < 4; ++field) {
                of_field[t][0][field] = of_field[t][1][field] = _mm512_setzero_si512();
            }
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = panel + chunk * chunk_bytes;
            prefetch(p + Ahead);
            prefetch(p + Ahead + 64);
            const __m512i half0 = load512(p);
            const __m512i half1 = load512(p + 64);
            TERNARY_UNROLL
            for (int field = 0; field < 4; ++field) {
                const __m512i mask = _mm512_set1_epi8(static_cast<char>(3 << (2 * field)));
                const __m512i codes0 = _mm512_and_si512(half0, mask);
                const __m512i codes1 = _mm512_and_si512(half1, mask);
                TERNARY_UNROLL
                for (int t = 0; t < T; ++t) {
                    const __m512i quad = broadcast_quad512(q + t * stride + chunk * chunk_cols + field * step_cols);
                    add_products_i32(of_field[t][0][field], codes0, quad);
                    add_products_i32(of_field[t][1][field], codes1, quad);
                }
            }
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int half = 0; half < 2; ++half) {
                const __m512i * s = of_field[t][half];
                const __m512i low = _mm512_add_epi32(s[0], _mm512_srai_epi32(s[1], 2));
                const __m512i high = _mm512_add_epi32(_mm512_srai_epi32(s[2], 4), _mm512_srai_epi32(s[3], 6));
                sum_i32x16[t][half] = _mm512_add_epi32(sum_i32x16[t][half], _mm512_add_epi32(low, high));
            }
        }
    }

    template <int Field, int T>
    static void add_field(__m512i half0, __m512i half1, const int8_t * q, int64_t stride, __m512i (&sum_i32x16)[T][2]) {
        const __m512i codes0 = codes_of<Field>(half0);
        const __m512i codes1 = codes_of<Field>(half1);
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            const __m512i quad = broadcast_quad512(q + t * stride + Field * step_cols);
            add_products_i32(sum_i32x16[t][0], codes0, quad);
            add_products_i32(sum_i32x16[t][1], codes1, quad);
        }
    }

    template <int T, int64_t Ahead>
    static TERNARY_INLINE void add_shifted(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride,
                                           __m512i (&sum_i32x16)[T][2]) {
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = panel + chunk * chunk_bytes;
            prefetch(p + Ahead);
            prefetch(p + Ahead + 64);
            const __m512i half0 = load512(p);
            const __m512i half1 = load512(p + 64);
            const int8_t * quads = q + chunk * chunk_cols;
            add_field<0, T>(half0, half1, quads, stride, sum_i32x16);
            add_field<1, T>(half0, half1, quads, stride, sum_i32x16);
            add_field<2, T>(half0, half1, quads, stride, sum_i32x16);
            add_field<3, T>(half0, half1, quads, stride, sum_i32x16);
        }
    }

#if defined(__GFNI__)
    // One instruction shifts and masks: the bits of `field` become bits 0 and 1, the rest is dropped.
    template <int Field>
    static TERNARY_INLINE __m512i codes_by_matrix(__m512i chunk) {
        return _mm512_gf2p8affine_epi64_epi8(chunk, _mm512_set1_epi64(0x0102000000000000 << (2 * Field)), 0);
    }

    template <int Field, int T>
    static TERNARY_INLINE void add_field_by_matrix(__m512i half0, __m512i half1, const int8_t * q, int64_t stride,
                                                   __m512i (&sum_i32x16)[T][2]) {
        const __m512i codes0 = codes_by_matrix<Field>(half0);
        const __m512i codes1 = codes_by_matrix<Field>(half1);
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            const __m512i quad = broadcast_quad512(q + t * stride + Field * step_cols);
            add_products_i32(sum_i32x16[t][0], codes0, quad);
            add_products_i32(sum_i32x16[t][1], codes1, quad);
        }
    }

    template <int T>
    static TERNARY_INLINE void add_chunk_by_matrix(const uint8_t * p, const int8_t * q, int64_t stride, __m512i (&sum_i32x16)[T][2]) {
        const __m512i half0 = load512(p);
        const __m512i half1 = load512(p + 64);
        add_field_by_matrix<0, T>(half0, half1, q, stride, sum_i32x16);
        add_field_by_matrix<1, T>(half0, half1, q, stride, sum_i32x16);
        add_field_by_matrix<2, T>(half0, half1, q, stride, sum_i32x16);
        add_field_by_matrix<3, T>(half0, half1, q, stride, sum_i32x16);
    }
#endif

    template <int T, int64_t Ahead>
    static TERNARY_INLINE void add_chunks(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride,
                                          __m512i (&sum_i32x16)[T][2]) {
        if constexpr (T <= unshifted_tokens) {
            add_unshifted<T, Ahead>(panel, chunks, q, stride, sum_i32x16);
        } else {
            add_shifted<T, Ahead>(panel, chunks, q, stride, sum_i32x16);
        }
    }
};

// A group's sums start at minus the sum of q, become floats in their registers and are added to the panel's sums in memory.
struct GroupedAvx512Vnni {
    static constexpr int tile_tokens = Avx512Vnni::tile_tokens;

    // Far ahead into L2, of which more may be under way than into L1, then into L1: see benchmarks/kernels.md.
    static constexpr int64_t prefetch_bytes = 1024;
    static constexpr int64_t prefetch_bytes_l2 = 8192;

    template <int T>
    static void run(Grouped kind, const uint8_t * panel, const GroupedTokens & in, int64_t token, float * y) {
        if (kind == Grouped::q2_0) {
            tile<T, Grouped::q2_0>(panel, in, token, y);
        } else {
            tile<T, Grouped::tq2_0>(panel, in, token, y);
        }
    }

    template <int T, Grouped kind>
    TERNARY_NOINLINE static void tile(const uint8_t * panel, const GroupedTokens & in, int64_t token, float * y) {
        constexpr int64_t chunks = group_chunks(kind);
        constexpr int64_t groups_of_block = block_chunks(kind) / chunks;
        const int8_t * q = in.q + token * in.stride;
        const float * step = in.step + token * in.groups;
        const int32_t * minus_sum = in.minus_sum + token * in.groups;
        for (int64_t i = 0; i < T * panel_rows; i += 16) {
            _mm512_store_ps(y + i, _mm512_setzero_ps());
        }
        for (int64_t first = 0; first < in.groups; first += groups_of_block, panel += grouped_block_bytes(kind)) {
            prefetch(panel + prefetch_bytes);
            prefetch_to_l2(panel + prefetch_bytes_l2);
            const __m512 scales0 = _mm512_cvtph_ps(load256(panel));
            const __m512 scales1 = _mm512_cvtph_ps(load256(panel + 32));
            for (int64_t g = 0; g < groups_of_block; ++g, q += chunks * chunk_cols, ++step, ++minus_sum) {
                __m512i sum_i32x16[T][2];
                TERNARY_UNROLL
                for (int t = 0; t < T; ++t) {
                    sum_i32x16[t][0] = sum_i32x16[t][1] = _mm512_set1_epi32(minus_sum[t * in.groups]);
                }
                add_group<T, chunks>(panel + scale_bytes + g * chunks * chunk_bytes, q, in.stride, sum_i32x16);
                TERNARY_UNROLL
                for (int t = 0; t < T; ++t) {
                    const __m512 step_f32x16 = _mm512_set1_ps(step[t * in.groups]);
                    add_floats(y + t * panel_rows, sum_i32x16[t][0], _mm512_mul_ps(scales0, step_f32x16));
                    add_floats(y + t * panel_rows + 16, sum_i32x16[t][1], _mm512_mul_ps(scales1, step_f32x16));
                }
            }
        }
    }

    template <int T, int64_t Chunks>
    static TERNARY_INLINE void add_group(const uint8_t * codes, const int8_t * q, int64_t stride, __m512i (&sum_i32x16)[T][2]) {
        TERNARY_UNROLL
        for (int64_t chunk = 0; chunk < Chunks; ++chunk) {
            prefetch_to_l2(codes + chunk * chunk_bytes + prefetch_bytes_l2);
            prefetch_to_l2(codes + chunk * chunk_bytes + prefetch_bytes_l2 + 64);
        }
#if defined(__GFNI__)
        if constexpr (T <= Avx512Vnni::unshifted_tokens && Chunks == 2) {
            // So few products that reducing add_unshifted's accumulators would take half of the time. Accumulators of its own
            // for each chunk halve the chain of products that wait for each other.
            __m512i second_i32x16[T][2];
            TERNARY_UNROLL
            for (int t = 0; t < T; ++t) {
                second_i32x16[t][0] = second_i32x16[t][1] = _mm512_setzero_si512();
            }
            TERNARY_UNROLL
            for (int64_t line = 0; line < Chunks * chunk_bytes; line += 64) {
                prefetch(codes + prefetch_bytes + line);
            }
            Avx512Vnni::add_chunk_by_matrix<T>(codes, q, stride, sum_i32x16);
            Avx512Vnni::add_chunk_by_matrix<T>(codes + chunk_bytes, q + chunk_cols, stride, second_i32x16);
            TERNARY_UNROLL
            for (int t = 0; t < T; ++t) {
                sum_i32x16[t][0] = _mm512_add_epi32(sum_i32x16[t][0], second_i32x16[t][0]);
                sum_i32x16[t][1] = _mm512_add_epi32(sum_i32x16[t][1], second_i32x16[t][1]);
            }
            return;
        }
#endif
        Avx512Vnni::add_chunks<T, prefetch_bytes>(codes, Chunks, q, stride, sum_i32x16);
    }

    static TERNARY_INLINE void add_floats(float * y, __m512i sum_i32x16, __m512 factor) {
        _mm512_store_ps(y, _mm512_add_ps(_mm512_load_ps(y), _mm512_mul_ps(_mm512_cvtepi32_ps(sum_i32x16), factor)));
    }
};

}  // namespace
}  // namespace ternary
