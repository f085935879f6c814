// Peak of the avx512vnni tier: vpdpbusd on 16 independent accumulators.
#include "x86_512.h"

namespace peaks {
namespace {

struct Avx512Vnni : Bits512 {
    static constexpr int accumulators = 16;
    static PEAKS_INLINE void step(__m512i * sums, __m512i codes, __m512i quad) {
        __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(*sums) : "v"(codes), "v"(quad));
    }
};

}  // namespace

int64_t avx512vnni_multiply_adds(int64_t iterations) { return multiply_adds<Avx512Vnni>(iterations); }
uint64_t avx512vnni_read(const uint8_t * data, int64_t bytes) { return read<Avx512Vnni>(data, bytes); }

}  // namespace peaks
