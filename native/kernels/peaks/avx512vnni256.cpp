// Peak of the avx512vnni256 tier: 256-bit vpdpbusd, the EVEX encoding, on 12 independent accumulators: as many as the kernel has.
#include "x86_256.h"

namespace peaks {
namespace {

struct Avx512Vnni256 : Bits256 {
    static constexpr int accumulators = 12;
    static PEAKS_INLINE void step(__m256i * sums, __m256i codes, __m256i quad) {
        __asm__ volatile("%{evex%} vpdpbusd %2, %1, %0" : "+x"(*sums) : "x"(codes), "x"(quad));
    }
};

}  // namespace

int64_t avx512vnni256_multiply_adds(int64_t iterations) { return multiply_adds<Avx512Vnni256>(iterations); }
uint64_t avx512vnni256_read(const uint8_t * data, int64_t bytes) { return read<Avx512Vnni256>(data, bytes); }

}  // namespace peaks
