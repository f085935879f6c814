// The product and the quantizer of grouped weights, once for every tier. An instruction set `Isa` brings what matmul.h and
// quantize.h take; its tile adds up one group of activations at a time, and must not overflow on codes of 3.
//
// Like matmul.h, this is compiled once per instruction set, with internal linkage.
#pragma once

#include "grouped_layout.h"
#include "matmul.h"
#include "quantize.h"

namespace ternary {
namespace {

constexpr uint32_t smallest_group_bits = 0x04000000u;  // 1.5e-36: 127 over less would be infinite

// The nearest value of float16, as a float; half to even. x is not negative and not NaN.
inline float rounded_to_half(float x) {
    if (x < 0x1p-14f) {
        return (x + 0.5f) - 0.5f;  // float16 has steps of 2^-24 here, and so have floats from 0.5 to 1
    }
    uint32_t bits = bits_of_float(x);
    bits = (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
    return float_of_bits(bits >= 0x47800000u ? float_infinity_bits : bits);  // from 65536
}

template <class Isa>
void quantize_groups(Grouped kind, const float * x, int64_t cols, int8_t * q, float * step, int32_t * minus_sum) {
    const int64_t group = activation_group(kind);
    for (int64_t col = 0; col < cols; col += group, ++step, ++minus_sum) {
        const uint32_t max_bits = Isa::max_abs_bits(x + col, group);
        if (max_bits < smallest_group_bits || max_bits >= float_infinity_bits) {
            memset(q + col, 0, static_cast<size_t>(group));
            *step = max_bits >= float_infinity_bits ? float_of_bits(float_nan_bits) : 0.0f;
            *minus_sum = 0;
            continue;
        }
        const float largest = float_of_bits(max_bits);
        const float scale = 127.0f / largest;
        *minus_sum = -Isa::round_scaled(x + col, group, scale, q + col);
        *step = kind == Grouped::q2_0 ? rounded_to_half(largest / 127.0f) : 1.0f / scale;
    }
}

// A finite float16 as a float, in a form that compilers vectorize: the bits in a float's place are 2^112 times too small.
inline float half_at(const uint8_t * p) {
    int16_t half;
    memcpy(&half, p, sizeof half);
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(half)) << 13 & 0x8fffe000u;
    return float_of_bits(bits) * 0x1p112f;
}

// The sums of T tokens and a panel: y[T][32].
template <class Isa, int T>
void grouped_tile(Grouped kind, const uint8_t * panel, const GroupedTokens & in, int64_t token, float * y) {
    for (int64_t i = 0; i < T * panel_rows; ++i) {
        y[i] = 0.0f;
    }
    const int64_t groups_of_block = weight_group(kind) / activation_group(kind);
    const int64_t chunks = group_chunks(kind);
    const int8_t * q = in.q + token * in.stride;
    for (int64_t first = 0; first < in.groups; first += groups_of_block, panel += grouped_block_bytes(kind)) {
        alignas(64) float scales[panel_rows];
        for (int64_t row = 0; row < panel_rows; ++row) {
            scales[row] = half_at(panel + 2 * row);
        }
        for (int64_t g = 0; g < groups_of_block; ++g, q += chunks * chunk_cols) {
            alignas(64) int32_t sums[T * panel_rows];
            Isa::template tile<T>(panel + scale_bytes + g * chunks * chunk_bytes, chunks, q, in.stride, sums);
            for (int64_t t = 0; t < T; ++t) {
                const int64_t at = (token + t) * in.groups + first + g;
                const float step = in.step[at];
                const int32_t minus_sum = in.minus_sum[at];
                for (int64_t row = 0; row < panel_rows; ++row) {
                    y[t * panel_rows + row] += static_cast<float>(sums[t * panel_rows + row] + minus_sum) * (scales[row] * step);
                }
            }
        }
    }
}

// What matmul_grouped takes: run<T>(kind, panel, in, token, y), and the most tokens of it. A tier may bring its own.
template <class Isa>
struct GroupByGroup {
    static constexpr int tile_tokens = Isa::tile_tokens;

    template <int T>
    static void run(Grouped kind, const uint8_t * panel, const GroupedTokens & in, int64_t token, float * y) {
        grouped_tile<Isa, T>(kind, panel, in, token, y);
    }
};

// Calls Tile::run<tokens> for a number known only at run time, 1 <= tokens <= T.
template <class Tile, int T>
void call_grouped(int64_t tokens, Grouped kind, const uint8_t * panel, const GroupedTokens & in, int64_t token, float * y) {
    if (tokens == T) {
        Tile::template run<T>(kind, panel, in, token, y);
    } else if constexpr (T > 1) {
        call_grouped<Tile, T - 1>(tokens, kind, panel, in, token, y);
    }
}

// Loops as in matmul.h.
template <class Tile>
void matmul_grouped(Grouped kind, const void * packed, int64_t rows, int64_t cols, const GroupedTokens & in, float * y,
                    int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    const uint8_t * panels = static_cast<const uint8_t *>(packed);
    const int64_t blocks = ceil_div(in.tokens, tokens_of_block(in.stride, Tile::tile_tokens));
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = block * in.tokens / blocks;
        const int64_t end = (block + 1) * in.tokens / blocks;
        const int64_t tiles = ceil_div(end - begin, Tile::tile_tokens);
        for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
            const int64_t row = panel * panel_rows;
            const size_t row_bytes = static_cast<size_t>(min64(panel_rows, rows - row)) * sizeof(float);
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const int64_t first = begin + tile * (end - begin) / tiles;
                const int64_t last = begin + (tile + 1) * (end - begin) / tiles;
                alignas(64) float sums[Tile::tile_tokens * panel_rows];
                call_grouped<Tile, Tile::tile_tokens>(last - first, kind, panels + panel * grouped_panel_bytes(kind, cols), in,
                                                      first, sums);
                for (int64_t token = first; token < last; ++token) {
                    memcpy(y + token * y_stride + row, sums + (token - first) * panel_rows, row_bytes);
                }
            }
        }
    }
}

}  // namespace
}  // namespace ternary
