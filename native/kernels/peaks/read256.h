// Reading memory with 256-bit loads, for the tiers whose files are built with AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace ternary_bench {
namespace {

inline uint64_t read256(const uint8_t * data, int64_t bytes) {
    __m256i sums[8];
#pragma GCC unroll 16
    for (__m256i & sum : sums) {
        sum = _mm256_setzero_si256();
    }
    for (int64_t i = 0; i < bytes; i += 256) {
#pragma GCC unroll 16
        for (int64_t line = 0; line < 4; ++line) {
            _mm_prefetch(reinterpret_cast<const char *>(data + i + 4096 + line * 64), _MM_HINT_T0);
        }
#pragma GCC unroll 16
        for (int a = 0; a < 8; ++a) {
            sums[a] = _mm256_xor_si256(sums[a], _mm256_loadu_si256(reinterpret_cast<const __m256i *>(data + i + a * 32)));
        }
    }
#pragma GCC unroll 16
    for (int a = 1; a < 8; ++a) {
        sums[0] = _mm256_xor_si256(sums[0], sums[a]);
    }
    return static_cast<uint64_t>(_mm256_extract_epi64(sums[0], 0) ^ _mm256_extract_epi64(sums[0], 1));
}

}  // namespace
}  // namespace ternary_bench
