// 256-bit registers, for the tiers whose files are built with AVX2.
#pragma once

#include "loops.h"

#include <immintrin.h>

namespace peaks {
namespace {

struct Bits256 {
    using Sum = __m256i;
    static constexpr int products = 32;
    static constexpr int group = 1;
    static __m256i bytes(char value) { return _mm256_set1_epi8(value); }
    static PEAKS_INLINE void keep(__m256i & sum) { __asm__ volatile("" : "+x"(sum)); }

    using Words = __m256i;
    static constexpr int64_t prefetch_bytes = 4096;
    static __m256i load(const uint8_t * p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
    static uint64_t folded(__m256i words) {
        return static_cast<uint64_t>(_mm256_extract_epi64(words, 0) ^ _mm256_extract_epi64(words, 1));
    }
};

}  // namespace
}  // namespace peaks
