// Peak of the avx512vnni tier: vpdpbusd on 16 independent accumulators. Look at the assembly when you change this: a loop
// whose accumulators are spilled shows half of the real peak.
#include "peaks.h"
#include "read512.h"

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

uint64_t avx512vnni_read(const uint8_t * data, int64_t bytes) { return read512(data, bytes); }

}  // namespace ternary_bench
