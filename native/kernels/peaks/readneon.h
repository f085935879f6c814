// Reading memory with NEON loads, for the ARM tiers.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace ternary_bench {
namespace {

inline uint64_t read_neon(const uint8_t * data, int64_t bytes) {
    uint64x2_t sums[8];
#pragma GCC unroll 16
    for (uint64x2_t & sum : sums) {
        sum = vdupq_n_u64(0);
    }
    for (int64_t i = 0; i < bytes; i += 128) {
        __builtin_prefetch(data + i + 1024);
        __builtin_prefetch(data + i + 1024 + 64);
#pragma GCC unroll 16
        for (int a = 0; a < 8; ++a) {
            sums[a] = veorq_u64(sums[a], vreinterpretq_u64_u8(vld1q_u8(data + i + a * 16)));
        }
    }
#pragma GCC unroll 16
    for (int a = 1; a < 8; ++a) {
        sums[0] = veorq_u64(sums[0], sums[a]);
    }
    return vgetq_lane_u64(sums[0], 0) ^ vgetq_lane_u64(sums[0], 1);
}

}  // namespace
}  // namespace ternary_bench
