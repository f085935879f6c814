// Peak of the neon tier: smlal and smlal2 on 24 independent accumulators.
#include "arm_128.h"

namespace peaks {
namespace {

struct Neon : Bits128 {
    using Sum = int16x8_t;
    static constexpr int products = 8;
    static constexpr int group = 2;
    static PEAKS_INLINE void step(int16x8_t * sums, int8x16_t codes, int8x16_t activations) {
        __asm__ volatile("smlal %0.8h, %1.8b, %2.8b" : "+w"(sums[0]) : "w"(codes), "w"(activations));
        __asm__ volatile("smlal2 %0.8h, %1.16b, %2.16b" : "+w"(sums[1]) : "w"(codes), "w"(activations));
    }
};

}  // namespace

int64_t neon_multiply_adds(int64_t iterations) { return multiply_adds<Neon>(iterations); }
uint64_t neon_read(const uint8_t * data, int64_t bytes) { return read<Neon>(data, bytes); }

}  // namespace peaks
