// The blocked matrix product, once for every tier. An instruction set `Isa` brings the inner loop:
//
//   tile_tokens                              most tokens that a tile takes
//   tile<T>(panel, chunks, q, stride, sums)  sums[T][32] = sum(code * q) of a whole panel and T tokens
//
// for one layout; a second layout is a second struct, named to matmul_f32 and matmul_i32. One of five_trit also brings
//
//   expand_tokens                            a block of so many tokens first turns each panel into two_bit; 0: never
//   TwoBit                                   the instruction set that multiplies it then
//   expand(panel, chunks, two_bit)           writes the codes of chunks of five_trit, up to a multiple of 5 chunks of two_bit
//
// Loops: blocks of tokens, whose activations fit in the second-level cache; panels; tiles of tokens. A panel's codes come
// from memory for the first tile and from the first-level cache for the others (20 KiB for 2,560 columns). They are
// unpacked again by each tile, which costs a few instructions among many multiply-adds: see benchmarks/kernels.md for
// what unpacking once to bytes gave.
//
// The sums are over codes, trit + 1; the token's sum of q is taken off at the end: sum(trit * q) = sum(code * q) - sum(q).
//
// This header is compiled once per instruction set. Everything in it has internal linkage and nothing of the standard
// library's inline functions is used: a copy compiled for AVX-512 that the linker kept for everybody would crash
// smaller CPUs.
#pragma once

#include "layout.h"

// The inner loops stay functions of their own: one for both kinds of output, and visible in a profile.
#define TERNARY_NOINLINE __attribute__((noinline))
#define TERNARY_INLINE __attribute__((always_inline)) inline

// Before every loop over an array of accumulators: one loop left rolled, and the whole array lives in memory.
#define TERNARY_UNROLL _Pragma("GCC unroll 16")

namespace ternary {
namespace {

constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Bytes of activations that a block of tokens may take, and most tokens in it.
constexpr int64_t block_bytes = 192 << 10;
constexpr int64_t block_tokens = 192;

constexpr int64_t tokens_of_block(int64_t token_bytes, int64_t tile_tokens) {
    const int64_t fitting = block_bytes / token_bytes / tile_tokens * tile_tokens;
    return fitting < tile_tokens ? tile_tokens : min64(fitting, block_tokens);
}

struct FloatOutput {
    float * y;
    int64_t stride;
    float weight_scale;

    void store(const int32_t * sums, int64_t row, int64_t rows, const QuantizedTokens & in, int64_t token) const {
        const int32_t sum_q = in.sum[token];
        const float factor = weight_scale / in.scale[token];
        float * out = y + token * stride + row;
        for (int64_t r = 0; r < rows; ++r) {
            out[r] = static_cast<float>(sums[r] - sum_q) * factor;
        }
    }
};

struct Int32Output {
    int32_t * y;
    int64_t stride;

    void store(const int32_t * sums, int64_t row, int64_t rows, const QuantizedTokens & in, int64_t token) const {
        const int32_t sum_q = in.sum[token];
        int32_t * out = y + token * stride + row;
        for (int64_t r = 0; r < rows; ++r) {
            out[r] = sums[r] - sum_q;
        }
    }
};

// Calls Isa::tile<tokens> for a number known only at run time, 1 <= tokens <= T.
template <class Isa, int T>
void call_tile(int64_t tokens, const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
    if (tokens == T) {
        Isa::template tile<T>(panel, chunks, q, stride, sums);
    } else if constexpr (T > 1) {
        call_tile<Isa, T - 1>(tokens, panel, chunks, q, stride, sums);
    }
}

template <class Output>
void store_panel(const int32_t * sums, int64_t row, int64_t rows, const QuantizedTokens & in, int64_t token_begin,
                 int64_t token_end, const Output & out) {
    const int64_t rows_here = min64(panel_rows, rows - row);
    for (int64_t token = token_begin; token < token_end; ++token) {
        const int32_t * token_sums = sums + (token - token_begin) * panel_rows;
        if (rows_here == panel_rows) {
            out.store(token_sums, row, panel_rows, in, token);  // constant trip count: vectorized
        } else {
            out.store(token_sums, row, rows_here, in, token);
        }
    }
}

// One panel and the tokens [begin, end). Tiles are of even size: 16 tokens are 8 + 8, not 12 + 4.
template <class Isa, Layout layout, class Output>
void panel_by_tokens(const uint8_t * panel, int64_t row, int64_t rows, int64_t cols, const QuantizedTokens & in, int64_t begin,
                     int64_t end, const Output & out) {
    alignas(64) int32_t sums[Isa::tile_tokens * panel_rows];
    const int64_t tiles = ceil_div(end - begin, Isa::tile_tokens);
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = begin + tile * (end - begin) / tiles;
        const int64_t last = begin + (tile + 1) * (end - begin) / tiles;
        call_tile<Isa, Isa::tile_tokens>(last - first, panel, chunks_of(cols, layout), in.q + first * in.stride, in.stride, sums);
        store_panel(sums, row, rows, in, first, last, out);
    }
}

// Columns of a panel that is turned into two_bit, on the stack.
constexpr int64_t expand_cols = 16384;

template <class Isa, class Output>
TERNARY_NOINLINE void expanded_panel(const uint8_t * panel, int64_t row, int64_t rows, int64_t cols, const QuantizedTokens & in,
                                     int64_t begin, int64_t end, const Output & out) {
    alignas(64) uint8_t two_bit[panel_bytes(expand_cols) + 5 * chunk_bytes];
    Isa::expand(panel, chunks_of(cols, Layout::five_trit), two_bit);
    panel_by_tokens<typename Isa::TwoBit, Layout::two_bit>(two_bit, row, rows, cols, in, begin, end, out);
}

template <class Isa, Layout layout, class Output>
void matmul_any(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, const Output & out,
                int64_t panel_begin, int64_t panel_end) {
    const uint8_t * panels = static_cast<const uint8_t *>(packed);
    const int64_t blocks = ceil_div(in.tokens, tokens_of_block(in.stride, Isa::tile_tokens));
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = block * in.tokens / blocks;
        const int64_t end = (block + 1) * in.tokens / blocks;
        for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
            const uint8_t * p = panels + panel * panel_bytes(cols, layout);
            if constexpr (layout == Layout::five_trit) {
                if constexpr (Isa::expand_tokens > 0) {
                    if (end - begin >= Isa::expand_tokens && cols <= expand_cols) {
                        expanded_panel<Isa>(p, panel * panel_rows, rows, cols, in, begin, end, out);
                        continue;
                    }
                }
            }
            panel_by_tokens<Isa, layout>(p, panel * panel_rows, rows, cols, in, begin, end, out);
        }
    }
}

template <class Isa, Layout layout = Layout::two_bit>
void matmul_f32(const void * packed, int64_t rows, int64_t cols, float weight_scale, const QuantizedTokens & tokens, float * y,
                int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    matmul_any<Isa, layout>(packed, rows, cols, tokens, FloatOutput{y, y_stride, weight_scale}, panel_begin, panel_end);
}

template <class Isa, Layout layout = Layout::two_bit>
void matmul_i32(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & tokens, int32_t * y, int64_t y_stride,
                int64_t panel_begin, int64_t panel_end) {
    matmul_any<Isa, layout>(packed, rows, cols, tokens, Int32Output{y, y_stride}, panel_begin, panel_end);
}

}  // namespace
}  // namespace ternary
