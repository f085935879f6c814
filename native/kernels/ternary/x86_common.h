// What the x86 kernels share: loads, four activations in every lane, products added to sums. 512-bit functions only where
// the file's options have their instructions.
#pragma once

#include "matmul.h"

#include <immintrin.h>

#include <cstring>

namespace ternary {
namespace {

// Always inline: GCC takes the function for one without effect and drops its calls otherwise.
TERNARY_INLINE void prefetch(const void * p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
TERNARY_INLINE void prefetch_to_l2(const void * p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1); }

inline __m256i load256(const void * p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline void store256(void * p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i *>(p), v); }

inline int32_t quad_at(const int8_t * q) {
    int32_t quad;
    memcpy(&quad, q, sizeof quad);
    return quad;
}

// Columns 4 * step .. 4 * step + 3 of a token, in every lane.
inline __m256i broadcast_quad256(const int8_t * q) { return _mm256_set1_epi32(quad_at(q)); }

// One accumulator, one register: without the empty statement GCC 12 copies sums to the stack in every step. (Look for ymm
// or zmm beside rsp in the loops when you change them.)
template <class Vector>
TERNARY_INLINE void keep(Vector & sum) {
    __asm__("" : "+v"(sum));
}

// vpmaddubsw, vpaddw: two products to each int16 lane
inline void add_products_i16(__m256i & sum_i16x16, __m256i codes_u8x32, __m256i quad_s8x32) {
    sum_i16x16 = _mm256_add_epi16(sum_i16x16, _mm256_maddubs_epi16(codes_u8x32, quad_s8x32));
    keep(sum_i16x16);
}

#if defined(__AVX512BW__)
inline __m512i load512(const void * p) { return _mm512_loadu_si512(p); }

inline __m512i broadcast_quad512(const int8_t * q) { return _mm512_set1_epi32(quad_at(q)); }

inline void add_products_i16(__m512i & sum_i16x32, __m512i codes_u8x64, __m512i quad_s8x64) {
    sum_i16x32 = _mm512_add_epi16(sum_i16x32, _mm512_maddubs_epi16(codes_u8x64, quad_s8x64));
    keep(sum_i16x32);
}
#endif

#if defined(__AVX512VNNI__)
// vpdpbusd: four products to each int32 lane
inline void add_products_i32(__m512i & sum_i32x16, __m512i codes_u8x64, __m512i quad_s8x64) {
    sum_i32x16 = _mm512_dpbusd_epi32(sum_i32x16, codes_u8x64, quad_s8x64);
    keep(sum_i32x16);
}
#endif

}  // namespace
}  // namespace ternary
