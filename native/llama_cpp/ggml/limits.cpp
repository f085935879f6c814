#include "limits.h"

#include "peaks/peaks.h"
#include "ternary_buffer.h"

namespace {

const peaks::Loops & loops() {
    const char * tier = bitexport_tier_name();
    return *peaks::loops_for(tier == nullptr ? "scalar" : tier);
}

}  // namespace

int64_t bitexport_multiply_adds(int64_t iterations) {
    return loops().multiply_adds(iterations);
}

uint64_t bitexport_read_memory(const void * data, int64_t bytes) {
    return loops().read(static_cast<const uint8_t *>(data), bytes);
}
