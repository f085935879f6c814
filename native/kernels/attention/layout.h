// How a partial result lies in memory, and the exponential that decoding uses.
#pragma once

#include "attention.h"

#include <cmath>
#include <cstring>

#define ATTENTION_NOINLINE __attribute__((noinline))
#define ATTENTION_UNROLL _Pragma("GCC unroll 16")

namespace attention {
namespace {

// Of each head: the largest score, the sum, 14 floats of nothing, the values.
constexpr int64_t header_floats = 16;

constexpr int64_t head_floats(int64_t head_dim) { return header_floats + head_dim; }

constexpr float no_score = -INFINITY;

// exp(x) for x <= 0, within 2 units in the last place; 0 below -87, NaN for NaN. A loop over it vectorizes.
// x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by its Taylor polynomial of degree 7, whose error is below 2e-8.
inline float exp_of_negative(float x) {
    constexpr float log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    constexpr float round_by = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
    const float bounded = x >= -87.0f ? x : -87.0f;  // NaN has no integer
    const float n = (bounded * log2_e + round_by) - round_by;
    const float r = (bounded - n * ln2_high) - n * ln2_low;
    const float series =
        1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720 + r / 5040))))));
    const int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    memcpy(&power, &exponent, sizeof power);
    return x >= -87.0f ? series * power : x < -87.0f ? 0.0f : x;
}

}  // namespace
}  // namespace attention
