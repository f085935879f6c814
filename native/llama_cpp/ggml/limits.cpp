#include "limits.h"

#include "peaks/peaks.h"
#include "ternary_buffer.h"

#include <cstring>

namespace {

struct Peaks {
    ternary_bench::MultiplyAdds multiply_adds;
    ternary_bench::ReadMemory   read;
};

Peaks peaks() {
    const char * tier = bitexport_tier_name();
    Peaks        found{ternary_bench::scalar_multiply_adds, ternary_bench::scalar_read};
#define TERNARY_TIER(name, needs)                                                       \
    if (tier != nullptr && std::strcmp(tier, #name) == 0) {                             \
        found = {ternary_bench::name##_multiply_adds, ternary_bench::name##_read};      \
    }
#include "ternary/tiers.inc"
#undef TERNARY_TIER
    return found;
}

}  // namespace

int64_t bitexport_multiply_adds(int64_t iterations) {
    return peaks().multiply_adds(iterations);
}

uint64_t bitexport_read_memory(const void * data, int64_t bytes) {
    return peaks().read(static_cast<const uint8_t *>(data), bytes);
}
