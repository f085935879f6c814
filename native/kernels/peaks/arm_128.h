// 128-bit registers, for the ARM tiers.
#pragma once

#include "loops.h"

#include <arm_neon.h>

namespace peaks {
namespace {

struct Bits128 {
    using Sum = int32x4_t;
    static constexpr int accumulators = 24;
    static constexpr int group = 1;
    static int8x16_t bytes(int8_t value) { return vdupq_n_s8(value); }
    template <class Any>
    static PEAKS_INLINE void keep(Any & sum) {
        __asm__ volatile("" : "+w"(sum));
    }

    using Words = uint64x2_t;
    static constexpr int64_t prefetch_bytes = 1024;
    static uint64x2_t load(const uint8_t * p) { return vreinterpretq_u64_u8(vld1q_u8(p)); }
    static uint64_t folded(uint64x2_t words) { return vgetq_lane_u64(words, 0) ^ vgetq_lane_u64(words, 1); }
};

}  // namespace
}  // namespace peaks
