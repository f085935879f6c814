// How grouped weights lie in memory: the one place that both the repacker and the kernels read.
//
// A panel holds 32 rows as a sequence of blocks, one for every group of weights: first the rows' scales, 32 float16 (64 bytes),
// then the group's columns in chunks of the layout two_bit (layout.h). Codes are 0..3. Rows of padding hold code 1, scale 0.
#pragma once

#include "grouped.h"
#include "layout.h"

namespace ternary {
namespace {

constexpr int64_t scale_bytes = panel_rows * 2;

constexpr int64_t block_chunks(Grouped kind) { return weight_group(kind) / chunk_cols; }
constexpr int64_t group_chunks(Grouped kind) { return activation_group(kind) / chunk_cols; }
constexpr int64_t grouped_block_bytes(Grouped kind) { return scale_bytes + block_chunks(kind) * chunk_bytes; }

constexpr int64_t grouped_panel_bytes(Grouped kind, int64_t cols) {
    return cols / weight_group(kind) * grouped_block_bytes(kind);
}

}  // namespace
}  // namespace ternary
