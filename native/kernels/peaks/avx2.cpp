// Peak of the avx2 tier: vpmaddubsw and the vpaddw that it can't do without, in 12 independent accumulators.
#include "peaks.h"
#include "read256.h"

namespace ternary_bench {

int64_t avx2_multiply_adds(int64_t iterations) {
    constexpr int accumulators = 12;
    __m256i sums[accumulators];
#pragma GCC unroll 16
    for (__m256i & sum : sums) {
        sum = _mm256_setzero_si256();
    }
    const __m256i codes = _mm256_set1_epi8(1);
    const __m256i quad = _mm256_set1_epi8(3);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
        for (int a = 0; a < accumulators; ++a) {
            __m256i product;
            __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(product) : "x"(codes), "x"(quad));
            __asm__ volatile("vpaddw %1, %0, %0" : "+x"(sums[a]) : "x"(product));
        }
    }
#pragma GCC unroll 16
    for (__m256i & sum : sums) {
        __asm__ volatile("" : "+x"(sum));
    }
    return iterations * accumulators * 32;
}

uint64_t avx2_read(const uint8_t * data, int64_t bytes) { return read256(data, bytes); }

}  // namespace ternary_bench
