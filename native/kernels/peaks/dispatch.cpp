// Which loops go with which tier of native/kernels/ternary.

#include "loops.h"

#include <cstring>

namespace peaks {

const Loops * loops_for(const char * tier) {
#define TERNARY_TIER(name, needs)                                          \
    if (std::strcmp(tier, #name) == 0) {                                   \
        static constexpr Loops loops = {name##_multiply_adds, name##_read}; \
        return &loops;                                                     \
    }
#include "ternary/tiers.inc"
#undef TERNARY_TIER
    return nullptr;
}

}  // namespace peaks
