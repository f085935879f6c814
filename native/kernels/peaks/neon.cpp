// Peak of the neon tier: smlal and smlal2 on 24 independent accumulators.
#include "peaks.h"
#include "readneon.h"

namespace ternary_bench {

int64_t neon_multiply_adds(int64_t iterations) {
    constexpr int accumulators = 24;
    int16x8_t sums[accumulators];
#pragma GCC unroll 24
    for (int16x8_t & sum : sums) {
        sum = vdupq_n_s16(0);
    }
    const int8x16_t codes = vdupq_n_s8(1);
    const int8x16_t activations = vdupq_n_s8(3);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
        for (int a = 0; a < accumulators; a += 2) {
            __asm__ volatile("smlal %0.8h, %1.8b, %2.8b" : "+w"(sums[a]) : "w"(codes), "w"(activations));
            __asm__ volatile("smlal2 %0.8h, %1.16b, %2.16b" : "+w"(sums[a + 1]) : "w"(codes), "w"(activations));
        }
    }
#pragma GCC unroll 24
    for (int16x8_t & sum : sums) {
        __asm__ volatile("" : "+w"(sum));
    }
    return iterations * accumulators * 8;
}

uint64_t neon_read(const uint8_t * data, int64_t bytes) { return read_neon(data, bytes); }

}  // namespace ternary_bench
