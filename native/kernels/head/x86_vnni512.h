// The loops of 512 bits with VNNI, for every tier that has them. Opened by the algebra in x86_avx512vnni.cpp.
#pragma once

#include "matmul.h"

#include <immintrin.h>

#include <cstring>

namespace head {
namespace {

// Always inline: GCC takes the function for one without effect and drops its calls otherwise.
HEAD_INLINE void prefetch(const void * p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
HEAD_INLINE void prefetch_to_l2(const void * p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1); }
HEAD_INLINE __m512i load512(const void * p) { return _mm512_loadu_si512(p); }
HEAD_INLINE __m512i bytes_to_i32(const void * p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(p)));
}

HEAD_INLINE __m512i broadcast32(const void * p) {
    int32_t value;
    memcpy(&value, p, sizeof value);
    return _mm512_set1_epi32(value);
}

// One accumulator, one register: without the empty statement GCC 12 copies the sums of a large tile to the stack in every
// step. (Look for zmm beside rsp in the loops when you change them.)
HEAD_INLINE void keep(__m512i & sum) { __asm__("" : "+v"(sum)); }

struct Avx512Vnni {
    static constexpr int tile_tokens = 12;

    // The codes of a sub-block, a step a register.
    template <class F>
    static HEAD_INLINE void read_codes(const uint8_t * group, __m512i (&codes_u8x64)[F::steps]) {
        if constexpr (F::bits == 6) {
            __m512i a = load512(group), b = load512(group + line), c = load512(group + 2 * line);
            keep(a), keep(b), keep(c);  // else GCC loads each of them anew for every use
            const __m512i six = _mm512_set1_epi8(63);
            codes_u8x64[0] = _mm512_and_si512(a, six);
            codes_u8x64[1] = _mm512_and_si512(b, six);
            codes_u8x64[2] = _mm512_and_si512(c, six);
            // 0xca: the first operand's bits choose between the second and the third
            const __m512i ab = _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), _mm512_srli_epi16(a, 6), _mm512_srli_epi16(b, 4), 0xca);
            const __m512i abc = _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), ab, _mm512_srli_epi16(c, 2), 0xca);
            codes_u8x64[3] = _mm512_and_si512(abc, six);
            return;
        }
        const __m512i nibble = _mm512_set1_epi8(15);
        HEAD_UNROLL
        for (int pair = 0; pair < F::steps / 2; ++pair) {
            __m512i low = load512(group + pair * line);
            keep(low);
            codes_u8x64[2 * pair] = _mm512_and_si512(low, nibble);
            codes_u8x64[2 * pair + 1] = _mm512_and_si512(_mm512_srli_epi16(low, 4), nibble);
        }
        if constexpr (F::bits == 5) {
            __m512i high = load512(group + 4 * line);
            keep(high);
            const __m512i fifth = _mm512_set1_epi8(16);
            HEAD_UNROLL
            for (int step = 0; step < F::steps; ++step) {
                const __m512i moved = step < 4   ? _mm512_slli_epi16(high, static_cast<unsigned>(4 - step))
                                      : step > 4 ? _mm512_srli_epi16(high, static_cast<unsigned>(step - 4))
                                                 : high;
                codes_u8x64[step] = _mm512_ternarylogic_epi32(codes_u8x64[step], moved, fifth, 0xf8);  // a | (b & c)
            }
        }
    }

    template <class F, int T>
    HEAD_NOINLINE static void tile(const uint8_t * block, const Activations * activations, int64_t stride, float * sums) {
        half_tile<F, T>(block, activations, stride, sums);
        half_tile<F, T>(block + F::half_bytes, activations, stride, sums + half_rows);
    }

    // Few tokens leave the reading to the hardware, which knows one stream when it sees it: fetching in advance as well
    // costs a quarter of the speed. More tokens take longer over a block than it waits.
    template <class F, int T>
    static HEAD_INLINE void half_tile(const uint8_t * half, const Activations * activations, int64_t stride, float * sums) {
        __m512i sum_i32x16[T];
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            sum_i32x16[t] = _mm512_setzero_si512();
        }
        for (int g = 0; g < F::groups; ++g) {
            if constexpr (T >= 5) {
                const uint8_t * group = half + F::groups_at + g * F::group_bytes;
                HEAD_UNROLL
                for (int64_t at = 0; at < F::group_bytes; at += line) {
                    prefetch(group + 4096 + at);
                }
            }
            add_group<F, T>(half, g, activations, stride, sum_i32x16);
        }
        add_scaled<T>(half, sum_i32x16, activations, stride, sums);
        if constexpr (F::has_mins) {
            subtract_mins<F, T>(half, activations, stride, sums);
        }
    }

    // Sub-block g of a half.
    template <class F, int T>
    static HEAD_INLINE void add_group(const uint8_t * half, int g, const Activations * activations, int64_t stride,
                                      __m512i (&sum_i32x16)[T]) {
        __m512i codes_u8x64[F::steps];
        read_codes<F>(half + F::groups_at + g * F::group_bytes, codes_u8x64);
        const __m512i scale_i32x16 = bytes_to_i32(half + F::scales_at + g * half_rows);
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            const Activations & token = activations[t * stride];
            __m512i dot_i32x16 =
                F::offset != 0 ? _mm512_set1_epi32(token.minus_32_sum16[g]) : _mm512_setzero_si512();
            HEAD_UNROLL
            for (int step = 0; step < F::steps; ++step) {
                dot_i32x16 = _mm512_dpbusd_epi32(dot_i32x16, codes_u8x64[step],
                                                 broadcast32(token.q + (g * F::steps + step) * step_cols));
            }
            sum_i32x16[t] = _mm512_add_epi32(sum_i32x16[t], _mm512_mullo_epi32(dot_i32x16, scale_i32x16));
            keep(sum_i32x16[t]);
        }
    }

    // sums += float(sum) * (d * a)
    template <int T>
    static HEAD_INLINE void add_scaled(const void * d, const __m512i (&sum_i32x16)[T], const Activations * activations,
                                       int64_t stride, float * sums) {
        const __m512 d_f32x16 = _mm512_loadu_ps(d);
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            const __m512 factor = _mm512_mul_ps(d_f32x16, _mm512_set1_ps(activations[t * stride].a));
            const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum_i32x16[t]), factor);
            float * out = sums + t * panel_rows;
            _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), product));
        }
    }

    template <class F, int T>
    static HEAD_INLINE void subtract_mins(const uint8_t * half, const Activations * activations, int64_t stride, float * sums) {
        __m512i mins_i16x32[F::groups / 2];  // of two sub-blocks, side by side
        HEAD_UNROLL
        for (int pair = 0; pair < F::groups / 2; ++pair) {
            const uint8_t * mins = half + F::mins_at + 2 * pair * half_rows;
            mins_i16x32[pair] = _mm512_or_si512(bytes_to_i32(mins), _mm512_slli_epi32(bytes_to_i32(mins + half_rows), 16));
        }
        const __m512 dmin_f32x16 = _mm512_loadu_ps(half + F::dmin_at);
        HEAD_UNROLL
        for (int t = 0; t < T; ++t) {
            const Activations & token = activations[t * stride];
            __m512i sum_i32x16 = _mm512_setzero_si512();
            HEAD_UNROLL
            for (int pair = 0; pair < F::groups / 2; ++pair) {
                sum_i32x16 = _mm512_dpwssd_epi32(sum_i32x16, mins_i16x32[pair], broadcast32(token.sum32 + 2 * pair));
            }
            const __m512 factor = _mm512_mul_ps(dmin_f32x16, _mm512_set1_ps(token.a));
            const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum_i32x16), factor);
            float * out = sums + t * panel_rows;
            _mm512_storeu_ps(out, _mm512_sub_ps(_mm512_loadu_ps(out), product));
        }
    }
};

}  // namespace

}  // namespace head
