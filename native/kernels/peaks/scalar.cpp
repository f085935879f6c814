// The scalar tier has no multiply-add instruction, and reads eight bytes at a time.
#include "loops.h"

#include <cstring>

namespace peaks {
namespace {

struct Scalar {
    using Words = uint64_t;
    static constexpr int64_t prefetch_bytes = 0;
    static uint64_t load(const uint8_t * p) {
        uint64_t word;
        std::memcpy(&word, p, sizeof word);
        return word;
    }
    static uint64_t folded(uint64_t word) { return word; }
};

}  // namespace

int64_t scalar_multiply_adds(int64_t) { return 0; }
uint64_t scalar_read(const uint8_t * data, int64_t bytes) { return read<Scalar>(data, bytes); }

}  // namespace peaks
