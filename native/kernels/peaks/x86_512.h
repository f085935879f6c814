// 512-bit registers, for the tiers whose files are built with AVX-512.
#pragma once

#include "loops.h"

#include <immintrin.h>

namespace peaks {
namespace {

struct Bits512 {
    using Sum = __m512i;
    static constexpr int products = 64;
    static constexpr int group = 1;
    static __m512i bytes(char value) { return _mm512_set1_epi8(value); }
    static PEAKS_INLINE void keep(__m512i & sum) { __asm__ volatile("" : "+v"(sum)); }

    using Words = __m512i;
    static constexpr int64_t prefetch_bytes = 4096;
    static __m512i load(const uint8_t * p) { return _mm512_loadu_si512(p); }
    static uint64_t folded(__m512i words) { return static_cast<uint64_t>(_mm512_reduce_add_epi64(words)); }
};

}  // namespace
}  // namespace peaks
