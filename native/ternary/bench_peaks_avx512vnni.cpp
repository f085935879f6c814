// Peak of the avx512vnni tier: vpdpbusd on 16 independent accumulators. Look at the assembly when you change this: a loop
// whose accumulators are spilled shows half of the real peak.
#include "bench_peaks.h"

#include <immintrin.h>

namespace ternary_bench {

int64_t avx512vnni_multiply_adds(int64_t iterations) {
    constexpr int accumulators = 16;
    __m512i sums[accumulators];
#pragma GCC unroll 16
    for (__m512i & sum : sums) {
        sum = _mm512_setzero_si512();
    }
    const __m512i codes = _mm512_set1_epi8(1);
    const __m512i quad = _mm512_set1_epi8(3);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int a = 0; a < accumulators; ++a) {
            __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sums[a]) : "v"(codes), "v"(quad));
        }
    }
#pragma GCC unroll 16
    for (__m512i & sum : sums) {
        __asm__ volatile("" : "+v"(sum));
    }
    return iterations * accumulators * 64;
}

uint64_t avx512vnni_read(const uint8_t * data, int64_t bytes) {
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

}  // namespace ternary_bench
