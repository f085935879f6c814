// Peak of the avx2 tier: vpmaddubsw and the vpaddw that it can't do without, in 12 independent accumulators.
#include "x86_256.h"

namespace peaks {
namespace {

struct Avx2 : Bits256 {
    static constexpr int accumulators = 12;
    static PEAKS_INLINE void step(__m256i * sums, __m256i codes, __m256i quad) {
        __m256i product;
        __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(product) : "x"(codes), "x"(quad));
        __asm__ volatile("vpaddw %1, %0, %0" : "+x"(*sums) : "x"(product));
    }
};

}  // namespace

int64_t avx2_multiply_adds(int64_t iterations) { return multiply_adds<Avx2>(iterations); }
uint64_t avx2_read(const uint8_t * data, int64_t bytes) { return read<Avx2>(data, bytes); }

}  // namespace peaks
