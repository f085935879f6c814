// Reading memory with 512-bit loads, for the tiers whose files are built with AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ternary_bench {
namespace {

inline uint64_t read512(const uint8_t * data, int64_t bytes) {
    __m512i sums[8];
#pragma GCC unroll 16
    for (__m512i & sum : sums) {
        sum = _mm512_setzero_si512();
    }
    for (int64_t i = 0; i < bytes; i += 512) {
#pragma GCC unroll 16
        for (int64_t line = 0; line < 8; ++line) {
            _mm_prefetch(reinterpret_cast<const char *>(data + i + 4096 + line * 64), _MM_HINT_T0);
        }
#pragma GCC unroll 16
        for (int a = 0; a < 8; ++a) {
            sums[a] = _mm512_xor_si512(sums[a], _mm512_loadu_si512(data + i + a * 64));
        }
    }
#pragma GCC unroll 16
    for (int a = 1; a < 8; ++a) {
        sums[0] = _mm512_xor_si512(sums[0], sums[a]);
    }
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(sums[0]));
}

}  // namespace
}  // namespace ternary_bench
