// Peak of the avx512bw tier: vpmaddubsw and the vpaddw that it can't do without, in 24 independent accumulators. Two products,
// two sums: in turns, Zen 4 is a fifth slower.
#include "peaks.h"
#include "read512.h"

namespace ternary_bench {

int64_t avx512bw_multiply_adds(int64_t iterations) {
    constexpr int accumulators = 24;
    __m512i sums[accumulators];
#pragma GCC unroll 24
    for (__m512i & sum : sums) {
        sum = _mm512_setzero_si512();
    }
    const __m512i codes = _mm512_set1_epi8(1);
    const __m512i quad = _mm512_set1_epi8(3);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
        for (int a = 0; a < accumulators; a += 2) {
            __m512i products[2];
            __asm__ volatile("vpmaddubsw %2, %1, %0" : "=v"(products[0]) : "v"(codes), "v"(quad));
            __asm__ volatile("vpmaddubsw %2, %1, %0" : "=v"(products[1]) : "v"(codes), "v"(quad));
            __asm__ volatile("vpaddw %1, %0, %0" : "+v"(sums[a]) : "v"(products[0]));
            __asm__ volatile("vpaddw %1, %0, %0" : "+v"(sums[a + 1]) : "v"(products[1]));
        }
    }
#pragma GCC unroll 24
    for (__m512i & sum : sums) {
        __asm__ volatile("" : "+v"(sum));
    }
    return iterations * accumulators * 64;
}

uint64_t avx512bw_read(const uint8_t * data, int64_t bytes) { return read512(data, bytes); }

}  // namespace ternary_bench
