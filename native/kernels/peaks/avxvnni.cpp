// Peak of the avxvnni tier: 256-bit vpdpbusd, the VEX encoding, on 12 independent accumulators: as many as the kernel has.
#include "x86_256.h"

namespace peaks {
namespace {

struct AvxVnni : Bits256 {
    static constexpr int accumulators = 12;
    static PEAKS_INLINE void step(__m256i * sums, __m256i codes, __m256i quad) {
        __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(*sums) : "x"(codes), "x"(quad));
    }
};

}  // namespace

int64_t avxvnni_multiply_adds(int64_t iterations) { return multiply_adds<AvxVnni>(iterations); }
uint64_t avxvnni_read(const uint8_t * data, int64_t bytes) { return read<AvxVnni>(data, bytes); }

}  // namespace peaks
