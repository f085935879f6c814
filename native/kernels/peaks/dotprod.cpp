// Peak of the dotprod tier: sdot on 24 independent accumulators.
#include "arm_128.h"

namespace peaks {
namespace {

struct Dotprod : Bits128 {
    static constexpr int products = 16;
    static PEAKS_INLINE void step(int32x4_t * sums, int8x16_t codes, int8x16_t activations) {
        __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[0]" : "+w"(*sums) : "w"(codes), "w"(activations));
    }
};

}  // namespace

int64_t dotprod_multiply_adds(int64_t iterations) { return multiply_adds<Dotprod>(iterations); }
uint64_t dotprod_read(const uint8_t * data, int64_t bytes) { return read<Dotprod>(data, bytes); }

}  // namespace peaks
