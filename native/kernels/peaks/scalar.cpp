#include "peaks.h"

#include <cstring>

namespace ternary_bench {

int64_t scalar_multiply_adds(int64_t) { return 0; }

uint64_t scalar_read(const uint8_t * data, int64_t bytes) {
    uint64_t sums[8] = {};
    for (int64_t i = 0; i < bytes; i += 64) {
        for (int64_t word = 0; word < 8; ++word) {
            uint64_t value;
            std::memcpy(&value, data + i + word * 8, sizeof value);
            sums[word] ^= value;
        }
    }
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

}  // namespace ternary_bench
