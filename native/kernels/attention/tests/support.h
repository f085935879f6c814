// What the tests of decoding and of prefill share: float16s, and the kernels that this machine can run.
#pragma once

#include "attention/attention.h"
#include "test_support.h"

#include <cmath>
#include <cstdio>
#include <vector>

namespace attention_test {

using kernel_test::Random;

// A float16 between 2^-3 and 4 with either sign, or its value.
inline uint16_t random_half(Random & random) {
    const uint32_t bits = random.next();
    return static_cast<uint16_t>((bits & 0x8000) | ((12 + bits % 5) << 10) | (bits >> 20 & 0x3ff));
}

inline double value_of(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return half >> 15 ? -value : value;
}

constexpr uint16_t hidden = 0xfc00, not_a_number = 0x7e00, minus_two = 0xc000;

// All kernels that this CPU can run; prints which.
inline std::vector<const attention::Kernels *> available() {
    std::vector<const attention::Kernels *> found;
#if defined(__x86_64__)
    const bool can_run[] = {__builtin_cpu_supports("avx2") != 0, __builtin_cpu_supports("avx512f") != 0};
#else
    const bool can_run[] = {false, false};
#endif
    const char * const tiers[] = {"avx2", "avx512vnni"};
    for (int i = 0; i < 2; ++i) {
        const attention::Kernels * kernels = can_run[i] ? attention::kernels_for(tiers[i]) : nullptr;
        std::printf("%s: %s\n", tiers[i], kernels == nullptr ? "not on this machine" : kernels->name);
        if (kernels != nullptr) {
            found.push_back(kernels);
        }
    }
    return found;
}

}  // namespace attention_test
