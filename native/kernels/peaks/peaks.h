// The machine's own limits, measured with loops that do nothing else. One pair of functions a tier, built with the tier's
// compile options.
#pragma once

#include <cstdint>

namespace ternary_bench {

// Runs the tier's multiply-add instructions on registers alone; returns the number of multiply-adds done, 0 when the
// tier has no such instruction.
using MultiplyAdds = int64_t (*)(int64_t iterations);

// Reads `bytes` (a multiple of 1024) once; the result only keeps the compiler from dropping the loads.
using ReadMemory = uint64_t (*)(const uint8_t * data, int64_t bytes);

#define TERNARY_TIER(name, needs)                       \
    int64_t name##_multiply_adds(int64_t iterations);   \
    uint64_t name##_read(const uint8_t * data, int64_t bytes);
#include "ternary/tiers.inc"
#undef TERNARY_TIER

}  // namespace ternary_bench
