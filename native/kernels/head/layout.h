// How packed weights lie in memory: the one place that both the repacker and the kernels read.
//
// A panel is 32 rows as a sequence of blocks of 256 columns; a block is two halves of 16 rows; a half is
//   d        float32 [16 rows]                 and dmin, the same, where the type has minima
//   scales   int8 [sub-blocks][16 rows]        and mins, the same
//   groups   one a sub-block of 4 * steps columns: lines of 64 bytes, byte 4 * row + col of a line is column col of a
//            step, row row.
//            q4_k: 8 steps in 4 lines, bits 0-3 step 2n, bits 4-7 step 2n + 1.
//            q5_k: the same and a fifth line with the fifth bits, bit n for step n.
//            q6_k: 4 steps in 3 lines, bits 0-5 step n; bits 6-7 of the three make up step 3, the lowest first. Three
//            of four codes so cost one mask and no shift.
// So one load and a few masks give 16 rows x 4 columns in bytes, and these meet the same four activations, broadcast to
// every 32-bit lane. Rows of padding are all zero, d among it.
#pragma once

#include "head.h"

namespace head {
namespace {

constexpr int64_t line = 64;
constexpr int64_t half_rows = 16;
constexpr int64_t step_cols = 4;

// Code: value = d * scale * (code - offset) - dmin * min.
template <int Bits, int Steps, int Offset, bool HasMins>
struct Format {
    static constexpr int bits = Bits;  // of a code
    static constexpr int steps = Steps;  // of a sub-block
    static constexpr int offset = Offset;
    static constexpr bool has_mins = HasMins;
    static constexpr int groups = 64 / Steps;
    static constexpr int64_t group_bytes = line * Steps * Bits / 8;
    static constexpr int64_t dmin_at = line;
    static constexpr int64_t scales_at = line * (HasMins ? 2 : 1);
    static constexpr int64_t mins_at = scales_at + groups * half_rows;
    static constexpr int64_t groups_at = scales_at + groups * half_rows * (HasMins ? 2 : 1);
    static constexpr int64_t half_bytes = groups_at + groups * group_bytes;
    static constexpr int64_t block_bytes = 2 * half_bytes;
    static_assert(half_bytes % line == 0, "every half begins a line");
};

using Q4K = Format<4, 8, 0, true>;
using Q5K = Format<5, 8, 0, true>;
using Q6K = Format<6, 4, 32, false>;

constexpr int64_t blocks_of(int64_t cols) { return cols / block_cols; }

}  // namespace
}  // namespace head
