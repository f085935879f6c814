// What the ternary tests share: slow code written from the definitions, not from the kernels, and every tier of this machine.
#pragma once

#include "ternary/ternary.h"
#include "test_support.h"

#include <string>
#include <vector>

namespace ternary_test {

using namespace kernel_test;

// I2_S by its definition: element e of the flattened tensor sits in block e / 128, byte e % 32 of its 32 bytes, and
// within the byte the elements 0-31, 32-63, 64-95, 96-127 have bits 7-6, 5-4, 3-2, 1-0.
inline std::vector<uint8_t> pack_i2_s(const std::vector<int8_t> & trits) {
    std::vector<uint8_t> codes(trits.size() / 4, 0);
    for (size_t e = 0; e < trits.size(); ++e) {
        codes[e / 128 * 32 + e % 32] |= static_cast<uint8_t>((trits[e] + 1) << (6 - 2 * (e % 128 / 32)));
    }
    return codes;
}

inline std::vector<int8_t> unpack_i2_s(const std::vector<uint8_t> & codes) {
    std::vector<int8_t> trits(codes.size() * 4);
    for (size_t e = 0; e < trits.size(); ++e) {
        trits[e] = static_cast<int8_t>(((codes[e / 128 * 32 + e % 32] >> (6 - 2 * (e % 128 / 32))) & 3) - 1);
    }
    return trits;
}

inline std::vector<int8_t> random_trits(size_t n, uint64_t seed) {
    Random random(seed);
    std::vector<int8_t> trits(n);
    for (int8_t & trit : trits) {
        trit = static_cast<int8_t>(random.next() % 3) - 1;
    }
    return trits;
}

// Every tier of this build that this CPU runs, also if it would not be chosen.
inline std::vector<const ternary::Kernels *> tiers() {
    std::vector<const ternary::Kernels *> result;
    const ternary::CpuFeatures cpu = ternary::all_that_runs();
#define TERNARY_TIER(name, needs)                                                              \
    if (const ternary::Kernels * kernels = ternary::kernels_for(ternary::Tier::name, cpu)) {   \
        result.push_back(kernels);                                                             \
    }
#include "ternary/tiers.inc"
#undef TERNARY_TIER
    return result;
}

struct TierLayout {
    const ternary::Kernels * kernels;
    ternary::Layout layout;

    std::string name() const { return std::string(kernels->name) + " " + ternary::layout_name(layout); }
    const ternary::Products & products() const { return kernels->products(layout); }
};

// Every layout of every tier that this CPU runs.
inline std::vector<TierLayout> tier_layouts() {
    std::vector<TierLayout> result;
    for (const ternary::Kernels * kernels : tiers()) {
        for (const ternary::Layout layout : ternary::all_layouts) {
            if (kernels->offers(layout)) {
                result.push_back({kernels, layout});
            }
        }
    }
    return result;
}

inline const ternary::Kernels & scalar() { return *ternary::kernels_for(ternary::Tier::scalar, ternary::CpuFeatures{}); }

}  // namespace ternary_test
