// How packed weights lie in memory: the one place that both the repacker and the kernels read.
//
// A panel holds 32 rows as a sequence of chunks of 128 bytes. In every layout a chunk is
//   byte  64 * half + 4 * row + col   (half 0..1, row 0..15, col 0..3)
// and that byte holds the codes (trit + 1) of row 16 * half + row at the columns chunk_cols * chunk + 4 * field + col. So
// one 64-byte load gives 16 rows, and the codes of one field, in bytes, meet the same four activations, broadcast to every
// 32-bit lane. Rows and columns of padding hold code 1 (trit 0).
//
// two_bit: four fields, field f in bits 2 f and 2 f + 1. 16 columns a chunk.
// five_trit: five fields, 20 columns a chunk, 1.6 bits a weight. Negating the first four trits pairs up their 81 patterns:
//   41 classes, 42 with one for an even number. Times 3 for the fifth trit, which stays, that is 126, at most 2^7. So
//     n = c0 + 3 c1 + 9 c2 + 27 c3, m = min(n, 80 - n)
//     bits 0 to 5: m / 2 + 21 * c4     bit 6: m % 2     bit 7: n > 40
//   A table of 128 bytes (one instruction of VBMI) gives the first four codes of m in two_bit's form; where bit 7 is set they
//   are taken from 0xaa, which exchanges 0 and 2 in each. A table of 64 bytes gives the fifth.
#pragma once

#include "ternary.h"

namespace ternary {
namespace {

constexpr int64_t chunk_cols = 16;  // of two_bit
constexpr int64_t chunk_bytes = 128;
constexpr int64_t step_cols = 4;  // columns of one field
constexpr int64_t fields = 4;

constexpr int64_t five_trit_chunk_cols = 20;
constexpr int five_trit_pairs = 21;  // values of m / 2
constexpr uint8_t code_negation = 0xaa;  // four times code 2

constexpr int64_t layout_chunk_cols(Layout layout) { return layout == Layout::two_bit ? chunk_cols : five_trit_chunk_cols; }

constexpr int64_t chunks_of(int64_t cols, Layout layout = Layout::two_bit) {
    return (cols + layout_chunk_cols(layout) - 1) / layout_chunk_cols(layout);
}

constexpr int64_t panel_bytes(int64_t cols, Layout layout = Layout::two_bit) { return chunks_of(cols, layout) * chunk_bytes; }

// A token's bytes: kernels read whole chunks of either layout.
constexpr int64_t padded_token_bytes(int64_t cols) { return (chunks_of(cols, Layout::five_trit) * five_trit_chunk_cols + 63) / 64 * 64; }

}  // namespace
}  // namespace ternary
