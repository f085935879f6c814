// How packed weights lie in memory: the one place that both the repacker and the kernels read.
//
// A panel holds 32 rows as a sequence of chunks of 16 columns; a chunk is 128 bytes:
//   byte  64 * half + 4 * row + col   (half 0..1, row 0..15, col 0..3)
//   bits  2 * field, 2 * field + 1    (field 0..3)
//   code  of row 16 * half + row, column 16 * chunk + 4 * field + col;   code = trit + 1
// So one 64-byte load gives 16 rows x 16 columns, one shift and one mask gives 16 rows x 4 columns in bytes, and these
// meet the same four activations, broadcast to every 32-bit lane. Rows and columns of padding hold code 1 (trit 0).
#pragma once

#include "ternary.h"

namespace ternary {
namespace {

constexpr int64_t chunk_cols = 16;
constexpr int64_t chunk_bytes = 128;
constexpr int64_t step_cols = 4;  // columns of one field
constexpr int64_t fields = 4;

constexpr int64_t chunks_of(int64_t cols) { return (cols + chunk_cols - 1) / chunk_cols; }
constexpr int64_t panel_bytes(int64_t cols) { return chunks_of(cols) * chunk_bytes; }

}  // namespace
}  // namespace ternary
