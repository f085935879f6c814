// The blocked matrix product, once for every tier. An instruction set `Isa` brings the inner loops:
//
//   direct_tokens   largest batch that reads the packed codes themselves; larger ones unpack them first
//   tile_tokens     most tokens of one register tile
//   direct<T>(panel, chunks, q, stride, sums)   sums[T][32]  = sum(code * q) over a whole panel
//   unpack(codes, chunks, bytes)                packed chunks -> steps of one code a byte
//   tile<T>(bytes, steps, q, stride, sums)      sums[T][32] += sum(code * q) over unpacked steps
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
// Before every loop over an array of accumulators: one loop left rolled, and the whole array lives in memory.
#define TERNARY_UNROLL _Pragma("GCC unroll 16")

namespace ternary {
namespace {

constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Unpacked weights of a block stay in the first-level cache: 32 rows x 512 columns = 16 KiB.
constexpr int64_t block_cols = 512;
constexpr int64_t block_chunks = block_cols / chunk_cols;
// Tokens that share one unpacking; their sums (24 KiB) and activations stay in the second-level cache.
constexpr int64_t block_tokens = 192;

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

// Calls Isa::direct<tokens> or Isa::tile<tokens> for a number known only at run time, 1 <= tokens <= T.
template <class Isa, int T>
void call_direct(int64_t tokens, const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
    if (tokens == T) {
        Isa::template direct<T>(panel, chunks, q, stride, sums);
    } else if constexpr (T > 1) {
        call_direct<Isa, T - 1>(tokens, panel, chunks, q, stride, sums);
    }
}

template <class Isa, int T>
void call_tile(int64_t tokens, const uint8_t * bytes, int64_t steps, const int8_t * q, int64_t stride, int32_t * sums) {
    if (tokens == T) {
        Isa::template tile<T>(bytes, steps, q, stride, sums);
    } else if constexpr (T > 1) {
        call_tile<Isa, T - 1>(tokens, bytes, steps, q, stride, sums);
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

// Few tokens: every weight is read once, from memory, and used at once.
template <class Isa, class Output>
void matmul_direct(const uint8_t * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, const Output & out,
                   int64_t panel_begin, int64_t panel_end) {
    alignas(64) int32_t sums[Isa::direct_tokens * panel_rows];
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        call_direct<Isa, Isa::direct_tokens>(in.tokens, packed + panel * panel_bytes(cols), chunks_of(cols), in.q, in.stride,
                                             sums);
        store_panel(sums, panel * panel_rows, rows, in, 0, in.tokens, out);
    }
}

// One panel for the tokens [begin, end), by blocks of columns. Tiles are of even size: 16 tokens are 8 + 8, not 12 + 4.
template <class Isa>
void panel_sums(const uint8_t * panel, int64_t chunks, const QuantizedTokens & in, int64_t begin, int64_t end, int32_t * sums) {
    alignas(64) uint8_t bytes[block_chunks * fields * step_bytes];
    const int64_t tokens = end - begin;
    const int64_t tiles = ceil_div(tokens, Isa::tile_tokens);
    for (int64_t i = 0; i < tokens * panel_rows; ++i) {
        sums[i] = 0;
    }
    for (int64_t chunk = 0; chunk < chunks; chunk += block_chunks) {
        const int64_t chunks_here = min64(block_chunks, chunks - chunk);
        Isa::unpack(panel + chunk * chunk_bytes, chunks_here, bytes);
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t first = tile * tokens / tiles;
            const int64_t last = (tile + 1) * tokens / tiles;
            const int8_t * q = in.q + (begin + first) * in.stride + chunk * chunk_cols;
            call_tile<Isa, Isa::tile_tokens>(last - first, bytes, chunks_here * fields, q, in.stride, sums + first * panel_rows);
        }
    }
}

// Many tokens: a panel is unpacked once and used for a block of tokens.
template <class Isa, class Output>
void matmul_blocked(const uint8_t * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, const Output & out,
                    int64_t panel_begin, int64_t panel_end) {
    alignas(64) int32_t sums[block_tokens * panel_rows];
    const int64_t blocks = ceil_div(in.tokens, block_tokens);
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = block * in.tokens / blocks;
        const int64_t end = (block + 1) * in.tokens / blocks;
        for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
            panel_sums<Isa>(packed + panel * panel_bytes(cols), chunks_of(cols), in, begin, end, sums);
            store_panel(sums, panel * panel_rows, rows, in, begin, end, out);
        }
    }
}

template <class Isa, class Output>
void matmul_any(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, const Output & out,
                int64_t panel_begin, int64_t panel_end) {
    const uint8_t * panels = static_cast<const uint8_t *>(packed);
    if (in.tokens <= 0) {
        return;
    }
    if (in.tokens <= Isa::direct_tokens) {
        matmul_direct<Isa>(panels, rows, cols, in, out, panel_begin, panel_end);
    } else {
        matmul_blocked<Isa>(panels, rows, cols, in, out, panel_begin, panel_end);
    }
}

template <class Isa>
void matmul_f32(const void * packed, int64_t rows, int64_t cols, float weight_scale, const QuantizedTokens & tokens, float * y,
                int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    matmul_any<Isa>(packed, rows, cols, tokens, FloatOutput{y, y_stride, weight_scale}, panel_begin, panel_end);
}

template <class Isa>
void matmul_i32(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & tokens, int32_t * y, int64_t y_stride,
                int64_t panel_begin, int64_t panel_end) {
    matmul_any<Isa>(packed, rows, cols, tokens, Int32Output{y, y_stride}, panel_begin, panel_end);
}

}  // namespace
}  // namespace ternary
