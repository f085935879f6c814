// Tile registers of AMX: their configuration for a call, and products with 32 rows of weights in bytes.
//
// Tiles 0 to 3 hold the sums of two tiles of tokens with both halves of a panel, 4 and 5 the activations, 6 and 7 the codes.
// The instructions are written out: then no compile option is needed, and every compiler keeps the stores to what a tile
// loads before the load (the intrinsics of some have no "memory" clobber).
#pragma once

#include "x86_common.h"

namespace ternary {
namespace {

constexpr int64_t tile_rows = 16;   // most rows of a tile, each of 64 bytes
constexpr int64_t step_bytes = 64;  // columns of one step along the rows of weights: what a row of activations holds
constexpr int64_t step_quads = step_bytes / step_cols;

// Codes in bytes. Step k: both halves' tiles, whose row i holds columns 64 k + 4 i .. 64 k + 4 i + 3 of 16 rows of weights.
constexpr int64_t half_tile_bytes = tile_rows * 64;
constexpr int64_t step_code_bytes = 2 * half_tile_bytes;

// The tiles of this thread while the object lives: of `tokens` rows for activations and sums. Releasing them tells the system
// that there is nothing to save.
class Tiles {
public:
    explicit Tiles(int64_t tokens) {
        alignas(64) struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {};
        } config;
        for (int tile = 0; tile < 8; ++tile) {
            config.rows[tile] = static_cast<uint8_t>(tile < 6 ? tokens : tile_rows);
        }
        __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
    }
    ~Tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
    Tiles(const Tiles &) = delete;
    Tiles & operator=(const Tiles &) = delete;
};

// Sums of a tile of tokens: [tokens][panel_rows].
constexpr int64_t sums_stride = panel_rows * 4;

TERNARY_INLINE void clear_sums() {
    __asm__ volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3" : : : "memory");
}

TERNARY_INLINE void load_sums(const int32_t * sums0, const int32_t * sums1) {
    __asm__ volatile(
        "tileloadd (%0,%2,1), %%tmm0\n\t"
        "tileloadd 64(%0,%2,1), %%tmm1\n\t"
        "tileloadd (%1,%2,1), %%tmm2\n\t"
        "tileloadd 64(%1,%2,1), %%tmm3"
        :
        : "r"(sums0), "r"(sums1), "r"(sums_stride)
        : "memory");
}

TERNARY_INLINE void store_sums(int32_t * sums0, int32_t * sums1) {
    __asm__ volatile(
        "tilestored %%tmm0, (%0,%2,1)\n\t"
        "tilestored %%tmm1, 64(%0,%2,1)\n\t"
        "tilestored %%tmm2, (%1,%2,1)\n\t"
        "tilestored %%tmm3, 64(%1,%2,1)"
        :
        : "r"(sums0), "r"(sums1), "r"(sums_stride)
        : "memory");
}

// One step of two tiles of tokens: sums += q * codes, q signed (the first operand), codes unsigned.
TERNARY_INLINE void add_step(const int8_t * q0, const int8_t * q1, int64_t stride, const uint8_t * codes) {
    __asm__ volatile(
        "tileloadd (%2,%4,1), %%tmm6\n\t"
        "tileloadd (%0,%3,1), %%tmm4\n\t"
        "tdpbsud %%tmm6, %%tmm4, %%tmm0\n\t"
        "tileloadd 1024(%2,%4,1), %%tmm7\n\t"
        "tdpbsud %%tmm7, %%tmm4, %%tmm1\n\t"
        "tileloadd (%1,%3,1), %%tmm5\n\t"
        "tdpbsud %%tmm6, %%tmm5, %%tmm2\n\t"
        "tdpbsud %%tmm7, %%tmm5, %%tmm3"
        :
        : "r"(q0), "r"(q1), "r"(codes), "r"(stride), "r"(static_cast<int64_t>(64))
        : "memory");
}
static_assert(half_tile_bytes == 1024, "as in the code above");

}  // namespace
}  // namespace ternary
