// Peak of the avx512bw tier: vpmaddubsw and the vpaddw that it can't do without, in 24 independent accumulators. Two products,
// two sums: in turns, Zen 4 is a fifth slower.
#include "x86_512.h"

namespace peaks {
namespace {

struct Avx512Bw : Bits512 {
    static constexpr int accumulators = 24;
    static constexpr int group = 2;
    static PEAKS_INLINE void step(__m512i * sums, __m512i codes, __m512i quad) {
        __m512i products[2];
        __asm__ volatile("vpmaddubsw %2, %1, %0" : "=v"(products[0]) : "v"(codes), "v"(quad));
        __asm__ volatile("vpmaddubsw %2, %1, %0" : "=v"(products[1]) : "v"(codes), "v"(quad));
        __asm__ volatile("vpaddw %1, %0, %0" : "+v"(sums[0]) : "v"(products[0]));
        __asm__ volatile("vpaddw %1, %0, %0" : "+v"(sums[1]) : "v"(products[1]));
    }
};

}  // namespace

int64_t avx512bw_multiply_adds(int64_t iterations) { return multiply_adds<Avx512Bw>(iterations); }
uint64_t avx512bw_read(const uint8_t * data, int64_t bytes) { return read<Avx512Bw>(data, bytes); }

}  // namespace peaks
