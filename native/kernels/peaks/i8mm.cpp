// Peak of the i8mm tier: smmla on 24 independent accumulators.
#include "arm_128.h"

namespace peaks {
namespace {

struct I8mm : Bits128 {
    static constexpr int products = 32;
    static PEAKS_INLINE void step(int32x4_t * sums, int8x16_t codes, int8x16_t activations) {
        __asm__ volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(*sums) : "w"(codes), "w"(activations));
    }
};

}  // namespace

int64_t i8mm_multiply_adds(int64_t iterations) { return multiply_adds<I8mm>(iterations); }
uint64_t i8mm_read(const uint8_t * data, int64_t bytes) { return read<I8mm>(data, bytes); }

}  // namespace peaks
