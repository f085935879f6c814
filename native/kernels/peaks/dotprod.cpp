// Peak of the dotprod tier: sdot on 24 independent accumulators.
#include "peaks.h"
#include "readneon.h"

namespace ternary_bench {

int64_t dotprod_multiply_adds(int64_t iterations) {
    constexpr int accumulators = 24;
    int32x4_t sums[accumulators];
#pragma GCC unroll 24
    for (int32x4_t & sum : sums) {
        sum = vdupq_n_s32(0);
    }
    const int8x16_t codes = vdupq_n_s8(1);
    const int8x16_t activations = vdupq_n_s8(3);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 24
        for (int a = 0; a < accumulators; ++a) {
            __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(sums[a]) : "w"(codes), "w"(activations));
        }
    }
#pragma GCC unroll 24
    for (int32x4_t & sum : sums) {
        __asm__ volatile("" : "+w"(sum));
    }
    return iterations * accumulators * 16;
}

uint64_t dotprod_read(const uint8_t * data, int64_t bytes) { return read_neon(data, bytes); }

}  // namespace ternary_bench
