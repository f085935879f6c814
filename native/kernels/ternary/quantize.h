// The activation quantizer's arithmetic, once for every tier. An instruction set `Isa` brings the two loops:
//
//   max_abs_bits(x, cols)                 largest |x| as the bits of a float
//   round_scaled(x, cols, scale, q)       q = clamp(round_half_to_even(x * scale)); returns sum(q)
//
// The maximum is taken on the bits: for non-negative floats the order of the bits is the order of the values, infinity
// comes after every number and NaN after infinity; so it is exact in any order of evaluation and one comparison finds a
// token that is not finite. Multiplication and rounding are exact operations of IEEE 754. Hence all tiers agree to the bit.
#pragma once

#include "layout.h"

#include <cstring>

namespace ternary {
namespace {

constexpr uint32_t float_sign_mask = 0x7fffffffu;
constexpr uint32_t float_infinity_bits = 0x7f800000u;
constexpr uint32_t float_nan_bits = 0x7fc00000u;
constexpr float smallest_max = 1e-5f;  // transformers' floor under max|x|

inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <class Isa>
void quantize_token(const float * x, int64_t cols, int8_t * q, float * scale, int32_t * sum) {
    const int64_t padded = padded_token_bytes(cols);
    const uint32_t max_bits = Isa::max_abs_bits(x, cols);
    if (max_bits >= float_infinity_bits) {
        memset(q, 0, static_cast<size_t>(padded));
        *scale = float_of_bits(float_nan_bits);
        *sum = 0;
        return;
    }
    const float max_abs = float_of_bits(max_bits);
    const float s = 127.0f / (max_abs > smallest_max ? max_abs : smallest_max);
    *scale = s;
    *sum = Isa::round_scaled(x, cols, s, q);
    memset(q + cols, 0, static_cast<size_t>(padded - cols));
}

}  // namespace
}  // namespace ternary
