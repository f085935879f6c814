// Peaks of the avx512amx tier: tdpbsud on the four tiles of sums that its kernels use. Memory is read as avx512vnni reads it.
#include "loops.h"

namespace peaks {

int64_t avx512amx_multiply_adds(int64_t iterations) {
    alignas(64) struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    alignas(64) uint8_t ones[1024];
    for (uint8_t & one : ones) {
        one = 1;
    }
    // One step takes about four times as long as one of the other tiers.
    constexpr int64_t tiles = 4, products = 16 * 16 * 64;
    const int64_t steps = (iterations + 3) / 4;
    __asm__ volatile(
        "ldtilecfg %0\n\t"
        "tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"
        "tileloadd (%1,%2,1), %%tmm4\n\ttileloadd (%1,%2,1), %%tmm5\n\t"
        "tileloadd (%1,%2,1), %%tmm6\n\ttileloadd (%1,%2,1), %%tmm7"
        :
        : "m"(config), "r"(ones), "r"(static_cast<int64_t>(64))
        : "memory");
    for (int64_t step = 0; step < steps; ++step) {
        __asm__ volatile(
            "tdpbsud %tmm6, %tmm4, %tmm0\n\t"
            "tdpbsud %tmm7, %tmm4, %tmm1\n\t"
            "tdpbsud %tmm6, %tmm5, %tmm2\n\t"
            "tdpbsud %tmm7, %tmm5, %tmm3");
    }
    __asm__ volatile("tilerelease");
    return steps * tiles * products;
}

uint64_t avx512amx_read(const uint8_t * data, int64_t bytes) { return avx512vnni_read(data, bytes); }

}  // namespace peaks
