// Activations, once for every tier: a few thousand numbers a token, against hundreds of millions of weights.

#include "layout.h"

#include <cstring>

namespace head {
namespace {

constexpr uint32_t infinity_bits = 0x7f800000u;
constexpr uint32_t smallest_bits = 0x04000000u;  // 1.5e-36: 127 times the inverse of less would be infinite

uint32_t magnitude_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffffu;  // for floats that are not negative the order of the bits is the order of the values
}

void quantize_block(const float * x, Activations & block) {
    uint32_t largest = 0;
    for (int i = 0; i < block_cols; ++i) {
        const uint32_t bits = magnitude_bits(x[i]);
        largest = bits > largest ? bits : largest;
    }
    if (largest < smallest_bits || largest >= infinity_bits) {
        memset(&block, 0, sizeof block);
        if (largest >= infinity_bits) {
            const uint32_t nan = 0x7fc00000u;
            memcpy(&block.a, &nan, sizeof nan);
        }
        return;
    }
    int extreme = 0;
    while (magnitude_bits(x[extreme]) != largest) {
        ++extreme;
    }
    const float inverse = -127.0f / x[extreme];
    for (int i = 0; i < block_cols; ++i) {
        // 1.5 * 2^23: a number this size has no bits behind the point, so the sum rounds half to even; its low bits are
        // the integer
        const float rounded = inverse * x[i] + 12582912.0f;
        int32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        const int32_t q = (bits & 0x7fffff) - 0x400000;
        block.q[i] = static_cast<int8_t>(q < 127 ? q : 127);
    }
    for (int g = 0; g < 16; ++g) {
        int32_t sum = 0;
        for (int i = 0; i < 16; ++i) {
            sum += block.q[16 * g + i];
        }
        block.minus_32_sum16[g] = -32 * sum;
        block.sum16[g] = static_cast<int16_t>(sum);
    }
    for (int g = 0; g < 8; ++g) {
        block.sum32[g] = static_cast<int16_t>(block.sum16[2 * g] + block.sum16[2 * g + 1]);
    }
    block.a = 1.0f / inverse;
}

}  // namespace

// An odd number of blocks of six lines each: tokens spread over the cache's sets.
int64_t token_blocks(int64_t cols) { return blocks_of(cols) | 1; }

void quantize(const float * x, int64_t cols, Activations * blocks) {
    for (int64_t block = 0; block < blocks_of(cols); ++block) {
        quantize_block(x + block * block_cols, blocks[block]);
    }
}

}  // namespace head
