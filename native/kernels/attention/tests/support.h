// What the tests of decoding and of prefill share: float16s, and the kernels that this machine can run.
#pragma once

#include "attention/attention.h"
#include "ternary/ternary.h"
#include "test_support.h"

#include <cmath>
#include <cstdio>
#include <utility>
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
    const ternary::CpuFeatures cpu = ternary::cpu_features();
    const std::pair<const char *, bool> tiers[] = {{"avx2", cpu.avx2}, {"avx512vnni", cpu.avx512f}, {"avx512amx", true}};
#else
    const std::pair<const char *, bool> tiers[] = {{"neon", true}};
#endif
    for (const auto & [tier, can_run] : tiers) {
        const attention::Kernels * kernels = can_run ? attention::kernels_for(tier) : nullptr;
        std::printf("%s: %s\n", tier, kernels == nullptr ? "not on this machine" : kernels->name);
        if (kernels != nullptr) {
            found.push_back(kernels);
        }
    }
#if defined(__x86_64__)
    kernel_test::check(!found.empty() || !cpu.avx2, "a CPU with AVX2 has kernels: Intel's and AMD's all have FMA and F16C, too");
#endif
    return found;
}

}  // namespace attention_test
