// The machine's own limits, measured with loops that do nothing else: one pair for each tier, built with the tier's compile
// options.
#pragma once

#include <cstdint>

namespace peaks {

struct Loops {
    // Runs the tier's multiply-add instructions on registers alone; returns the number of multiply-adds done, 0 when the
    // tier has no such instruction.
    int64_t (*multiply_adds)(int64_t iterations);

    // Reads `bytes` (a multiple of 1024) once; the result only keeps the compiler from dropping the loads.
    uint64_t (*read)(const uint8_t * data, int64_t bytes);
};

// The loops of the tier of this name, on a CPU that has it; nullptr when this build has no such tier.
const Loops * loops_for(const char * tier);

}  // namespace peaks
