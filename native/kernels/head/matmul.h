// The blocked matrix product, once for every tier. An instruction set `Isa` brings the inner loop:
//
//   tile_tokens                                  most tokens that a tile takes
//   tile<F, T>(block, activations, stride, sums) sums[T][32] += what one block of 256 columns of a panel adds
//
// Loops: stretches of tokens, whose activations fit in the second-level cache; panels; blocks of 256 columns; tiles of
// tokens. A block comes from memory for the first tile and from the first-level cache for the others.
//
// This header is compiled once per instruction set. Everything in it has internal linkage and nothing of the standard
// library's inline functions is used: a copy compiled for AVX-512 that the linker kept for everybody would crash
// smaller CPUs.
#pragma once

#include "layout.h"

#define HEAD_NOINLINE __attribute__((noinline))
#define HEAD_INLINE __attribute__((always_inline)) inline

// Before every loop over an array of registers: one loop left rolled, and the whole array lives in memory.
#define HEAD_UNROLL _Pragma("GCC unroll 16")

namespace head {
namespace {

constexpr int64_t stretch_tokens = 96;

template <class Isa, class F, int T>
void call_tile(int64_t tokens, const uint8_t * block, const Activations * activations, int64_t stride, float * sums) {
    if (tokens == T) {
        Isa::template tile<F, T>(block, activations, stride, sums);
    } else if constexpr (T > 1) {
        call_tile<Isa, F, T - 1>(tokens, block, activations, stride, sums);
    }
}

// One panel and `tokens` tokens: sums[tokens][32]. Tiles are of even size: 17 tokens are 9 + 8, not 16 + 1.
template <class Isa, class F>
void panel_sums(const uint8_t * panel, int64_t blocks, const Activations * activations, int64_t stride, int64_t tokens,
                float * sums) {
    for (int64_t i = 0; i < tokens * panel_rows; ++i) {
        sums[i] = 0.0f;
    }
    const int64_t tiles = (tokens + Isa::tile_tokens - 1) / Isa::tile_tokens;
    for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t first = tile * tokens / tiles;
            const int64_t last = (tile + 1) * tokens / tiles;
            call_tile<Isa, F, Isa::tile_tokens>(last - first, panel + block * F::block_bytes,
                                                activations + first * stride + block, stride, sums + first * panel_rows);
        }
    }
}

// Calls sums_of(panel, blocks, activations, stride, tokens, sums) for each stretch and panel, and writes its sums to y.
template <class F, class SumsOf>
void for_stretches(const void * packed, int64_t rows, int64_t cols, const Batch & batch, float * y, int64_t y_stride,
                   int64_t panel_begin, int64_t panel_end, const SumsOf & sums_of) {
    alignas(64) float sums[stretch_tokens * panel_rows];
    const int64_t blocks = blocks_of(cols);
    const int64_t stride = token_blocks(cols);
    const int64_t stretches = (batch.tokens + stretch_tokens - 1) / stretch_tokens;
    for (int64_t stretch = 0; stretch < stretches; ++stretch) {
        const int64_t begin = stretch * batch.tokens / stretches;
        const int64_t end = (stretch + 1) * batch.tokens / stretches;
        for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
            sums_of(static_cast<const uint8_t *>(packed) + panel * blocks * F::block_bytes, blocks, batch.blocks + begin * stride,
                    stride, end - begin, sums);
            const int64_t row = panel * panel_rows;
            const int64_t rows_here = rows - row < panel_rows ? rows - row : panel_rows;
            for (int64_t token = begin; token < end; ++token) {
                for (int64_t r = 0; r < rows_here; ++r) {
                    y[token * y_stride + row + r] = sums[(token - begin) * panel_rows + r];
                }
            }
        }
    }
}

template <class Isa, class F>
void matmul_of(const void * packed, int64_t rows, int64_t cols, const Batch & batch, float * y, int64_t y_stride,
               int64_t panel_begin, int64_t panel_end) {
    for_stretches<F>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end, panel_sums<Isa, F>);
}

template <class Isa>
void matmul(Type type, const void * packed, int64_t rows, int64_t cols, const Batch & batch, float * y, int64_t y_stride,
            int64_t panel_begin, int64_t panel_end) {
    switch (type) {
        case Type::q4_k: return matmul_of<Isa, Q4K>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
        case Type::q5_k: return matmul_of<Isa, Q5K>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
        case Type::q6_k: return matmul_of<Isa, Q6K>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
    }
}

}  // namespace
}  // namespace head
