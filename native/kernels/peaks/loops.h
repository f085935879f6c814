// The two loops, once for every tier. An instruction set `Isa` brings
//
//   Sum                           a register of sums
//   accumulators                  how many of them multiply_adds keeps, each independent of the others
//   products                      multiply-adds of one step for one accumulator
//   group                         accumulators that `step` takes at a time
//   bytes(value)                  a register of bytes, an operand of the products
//   step(sums, codes, quad)       adds one step's products to each of sums[0 .. group)
//   keep(sum)                     an empty statement that wants the sum in a register
//
//   Words                         what one load reads
//   load(p), folded(words)        the load, and its words in one
//   prefetch_bytes                how far ahead lines are fetched; 0: not at all
//
// Look at the assembly when you change this: a loop whose accumulators are spilled shows half of the real peak.
//
// As in ternary/matmul.h everything has internal linkage, because it is compiled once for each instruction set.
#pragma once

#include "peaks.h"

#define PEAKS_INLINE __attribute__((always_inline)) inline

// Before every loop over an array of sums: one loop left rolled, and the whole array lives in memory.
#define PEAKS_UNROLL _Pragma("GCC unroll 24")

namespace peaks {

#define TERNARY_TIER(name, needs)                     \
    int64_t name##_multiply_adds(int64_t iterations); \
    uint64_t name##_read(const uint8_t * data, int64_t bytes);
#include "ternary/tiers.inc"
#undef TERNARY_TIER

namespace {

template <class Isa>
PEAKS_INLINE int64_t multiply_adds(int64_t iterations) {
    typename Isa::Sum sums[Isa::accumulators];
    PEAKS_UNROLL
    for (typename Isa::Sum & sum : sums) {
        sum = typename Isa::Sum{};
    }
    const auto codes = Isa::bytes(1);
    const auto quad = Isa::bytes(3);
    for (int64_t i = 0; i < iterations; ++i) {
        PEAKS_UNROLL
        for (int a = 0; a < Isa::accumulators; a += Isa::group) {
            Isa::step(sums + a, codes, quad);
        }
    }
    PEAKS_UNROLL
    for (typename Isa::Sum & sum : sums) {
        Isa::keep(sum);
    }
    return iterations * Isa::accumulators * Isa::products;
}

template <class Isa>
PEAKS_INLINE uint64_t read(const uint8_t * data, int64_t bytes) {
    using Words = typename Isa::Words;
    constexpr int loads = 8;
    constexpr int64_t width = sizeof(Words);
    Words sums[loads];
    PEAKS_UNROLL
    for (Words & sum : sums) {
        sum = Words{};
    }
    for (int64_t i = 0; i < bytes; i += loads * width) {
        if constexpr (Isa::prefetch_bytes > 0) {
            PEAKS_UNROLL
            for (int64_t line = 0; line < loads * width; line += 64) {
                __builtin_prefetch(data + i + Isa::prefetch_bytes + line);
            }
        }
        PEAKS_UNROLL
        for (int a = 0; a < loads; ++a) {
            sums[a] ^= Isa::load(data + i + a * width);
        }
    }
    PEAKS_UNROLL
    for (int a = 1; a < loads; ++a) {
        sums[0] ^= sums[a];
    }
    return Isa::folded(sums[0]);
}

}  // namespace
}  // namespace peaks
