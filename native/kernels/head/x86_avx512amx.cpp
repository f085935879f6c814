// Tier avx512amx: AMX int8 beside AVX-512 VNNI (Sapphire Rapids and later), for batches. Fewer than `fewest_tokens` tokens are
// multiplied by avx512gfni's kernels.
//
// Instructions: tdpbssd adds to 16 x 16 sums of int32 the products of a tile of 16 tokens x 64 columns and a tile of 64 columns x
//   16 rows of weights. A line of the panel's layout is one row of the latter.
// Algebra: scale * (code - offset), at most 13 bits, is 128 * high + low with -31 <= high <= 32 and 0 <= low <= 127: two tiles of
//   bytes, unpacked once for all tokens. I = 128 * sum(high * q) + sum(low * q), so no sub-block is scaled after its products.
//   vpmaddubsw multiplies the even or the odd bytes of a line by their scales; the other factor of each pair is zero.
// Bounds: |sum(low * q)| and 128 * |sum(high * q)| stay below 2^27 in a block; code * scale fits in int16.

#include "amx.h"
#include "x86_vnni512.h"

namespace head {

extern const Kernels avx512gfni_kernels;
extern const Kernels avx512amx_kernels;

namespace {

constexpr int64_t fewest_tokens = 12;  // see benchmarks/head.md

constexpr int64_t tile_bytes = 1024;
constexpr int64_t tile_cols = 64;
constexpr int64_t tiles_of_block = block_cols / tile_cols;
constexpr int64_t tile_tokens = 16;
constexpr int64_t pair_tokens = 2 * tile_tokens;
constexpr int64_t ahead_bytes = 1536;  // into the first-level cache; into the second, so that more lines are under way:
constexpr int64_t ahead_bytes_l2 = 12288;

// Half a block in bytes. A tile's two parts lie side by side: 4 KiB apart, loads of one would wait for stores to the other.
struct alignas(64) Unpacked {
    struct Tile {
        int8_t high[tile_bytes], low[tile_bytes];
    } tiles[tiles_of_block];
};

// The scales of a sub-block, those of a row in its four bytes, zero where the other byte of the pair has its turn.
struct Scales {
    __m512i even_i8x64, odd_i8x64, offset_i16x32;

    template <class F>
    static HEAD_INLINE Scales of(const uint8_t * half, int64_t group) {
        const __m512i scale_i32x16 = bytes_to_i32(half + F::scales_at + group * half_rows);
        const __m512i low_i16x32 = _mm512_or_si512(_mm512_and_si512(scale_i32x16, _mm512_set1_epi32(0xffff)),
                                                   _mm512_slli_epi32(scale_i32x16, 16));
        Scales scales;
        scales.even_i8x64 = _mm512_and_si512(low_i16x32, _mm512_set1_epi16(0xff));
        scales.odd_i8x64 = _mm512_slli_epi16(low_i16x32, 8);
        scales.offset_i16x32 = _mm512_mullo_epi16(low_i16x32, _mm512_set1_epi16(F::offset));
        return scales;
    }
};

template <class F>
HEAD_INLINE void split(__m512i codes_u8x64, const Scales & scales, int8_t * high, int8_t * low) {
    __m512i even = _mm512_maddubs_epi16(codes_u8x64, scales.even_i8x64);
    __m512i odd = _mm512_maddubs_epi16(codes_u8x64, scales.odd_i8x64);
    if constexpr (F::offset != 0) {
        even = _mm512_sub_epi16(even, scales.offset_i16x32);
        odd = _mm512_sub_epi16(odd, scales.offset_i16x32);
    }
    // 0xca: the first operand's bits choose between the second and the third
    const __m512i even_bytes = _mm512_set1_epi16(0xff);
    const __m512i highs = _mm512_ternarylogic_epi32(even_bytes, _mm512_srli_epi16(even, 7), _mm512_slli_epi16(odd, 1), 0xca);
    const __m512i lows = _mm512_ternarylogic_epi32(even_bytes, even, _mm512_slli_epi16(odd, 8), 0xca);
    _mm512_store_si512(high, highs);
    _mm512_store_si512(low, _mm512_and_si512(lows, _mm512_set1_epi8(127)));
}

template <class F>
HEAD_INLINE void unpack_tile(const uint8_t * half, int64_t tile, Unpacked & to) {
    constexpr int64_t groups_of_tile = tile_cols / (F::steps * step_cols);
    HEAD_UNROLL
    for (int64_t i = 0; i < groups_of_tile; ++i) {
        const int64_t group = tile * groups_of_tile + i;
        const uint8_t * from = half + F::groups_at + group * F::group_bytes;
        HEAD_UNROLL
        for (int64_t at = 0; at < F::group_bytes; at += line) {
            prefetch(from + ahead_bytes + at);
            prefetch_to_l2(from + ahead_bytes_l2 + at);
        }
        __m512i codes_u8x64[F::steps];
        Avx512Vnni::read_codes<F>(from, codes_u8x64);
        const Scales scales = Scales::of<F>(half, group);
        HEAD_UNROLL
        for (int step = 0; step < F::steps; ++step) {
            const int64_t at = (i * F::steps + step) * line;
            split<F>(codes_u8x64[step], scales, to.tiles[tile].high + at, to.tiles[tile].low + at);
        }
    }
}

// Products of half a block with two tiles of tokens; rows of a tile of sums are tokens.
struct Sums {
    alignas(64) int32_t high[2][tile_tokens * half_rows];
    alignas(64) int32_t low[2][tile_tokens * half_rows];
};

HEAD_INLINE void clear() {
    __asm__ volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3" : : : "memory");
}

HEAD_INLINE void multiply_tile(const Unpacked & codes, int64_t tile, const int8_t * q0, const int8_t * q1, int64_t q_stride) {
    __asm__ volatile(
        "tileloadd (%2,%5,1), %%tmm6\n\t"
        "tileloadd (%0,%4,1), %%tmm4\n\t"
        "tdpbssd %%tmm6, %%tmm4, %%tmm0\n\t"
        "tileloadd (%3,%5,1), %%tmm7\n\t"
        "tdpbssd %%tmm7, %%tmm4, %%tmm1\n\t"
        "tileloadd (%1,%4,1), %%tmm5\n\t"
        "tdpbssd %%tmm6, %%tmm5, %%tmm2\n\t"
        "tdpbssd %%tmm7, %%tmm5, %%tmm3"
        :
        : "r"(q0 + tile * tile_cols), "r"(q1 + tile * tile_cols), "r"(codes.tiles[tile].high), "r"(codes.tiles[tile].low),
          "r"(q_stride), "r"(line)
        : "memory");
}

HEAD_INLINE void store(Sums & sums) {
    __asm__ volatile(
        "tilestored %%tmm0, (%0,%4,1)\n\t"
        "tilestored %%tmm1, (%1,%4,1)\n\t"
        "tilestored %%tmm2, (%2,%4,1)\n\t"
        "tilestored %%tmm3, (%3,%4,1)"
        :
        : "r"(sums.high[0]), "r"(sums.low[0]), "r"(sums.high[1]), "r"(sums.low[1]), "r"(line)
        : "memory");
}

// Tokens in pairs of tiles of equal size. The last tile starts early enough to be full: what others have is not added again.
struct Tiling {
    int64_t tokens;

    int64_t pairs() const { return (tokens + pair_tokens - 1) / pair_tokens; }
    int64_t tile_rows() const { return (tokens + 2 * pairs() - 1) / (2 * pairs()); }
    int64_t begin(int64_t tile) const {
        const int64_t last = tokens - tile_rows(), even = tile * tile_rows();
        return even < last ? even : last;
    }
    int64_t first_new(int64_t tile) const { return tile == 0 ? 0 : begin(tile - 1) + tile_rows(); }
};

// Half a block's integers of two tiles of tokens, which are still to be added to the tokens' sums.
struct Pending {
    const uint8_t * half = nullptr;
    const Activations * activations;
    float * sums;
    int64_t begin[2], first_new[2], end[2];
    Sums integers;
};

template <class F>
HEAD_INLINE void add_pending(const Pending & of, int64_t stride) {
    for (int tile = 0; tile < 2; ++tile) {
        for (int64_t token = of.first_new[tile]; token < of.end[tile]; ++token) {
            const int64_t at = (token - of.begin[tile]) * half_rows;
            const __m512i high = _mm512_load_si512(of.integers.high[tile] + at);
            const __m512i integer[1] = {_mm512_add_epi32(_mm512_slli_epi32(high, 7), _mm512_load_si512(of.integers.low[tile] + at))};
            Avx512Vnni::add_scaled<1>(of.half, integer, of.activations + token * stride, stride, of.sums + token * panel_rows);
            if constexpr (F::has_mins) {
                Avx512Vnni::subtract_mins<F, 1>(of.half, of.activations + token * stride, stride, of.sums + token * panel_rows);
            }
        }
    }
}

// sums[tokens][32], 16 of each, += half a block, but for what it leaves in `pending`. The first pair's products are computed while
// the next tile is unpacked, and those of every pair while the integers before them are added.
template <class F>
HEAD_NOINLINE void add_half_block(const uint8_t * half, const Tiling & tiling, const Activations * activations, int64_t stride,
                                  float * sums, Pending & pending) {
    Unpacked codes;
    const int64_t q_stride = stride * static_cast<int64_t>(sizeof(Activations));
    for (int64_t pair = 0; pair < tiling.pairs(); ++pair) {
        const int8_t * q0 = activations[tiling.begin(2 * pair) * stride].q;
        const int8_t * q1 = activations[tiling.begin(2 * pair + 1) * stride].q;
        clear();
        if (pair == 0) {
            unpack_tile<F>(half, 0, codes);
            for (int64_t tile = 1; tile < tiles_of_block; ++tile) {
                unpack_tile<F>(half, tile, codes);
                multiply_tile(codes, tile - 1, q0, q1, q_stride);
            }
            multiply_tile(codes, tiles_of_block - 1, q0, q1, q_stride);
        } else {
            for (int64_t tile = 0; tile < tiles_of_block; ++tile) {
                multiply_tile(codes, tile, q0, q1, q_stride);
            }
        }
        if (pending.half != nullptr) {
            add_pending<F>(pending, stride);
        }
        pending.half = half;
        pending.activations = activations;
        pending.sums = sums;
        for (int tile = 0; tile < 2; ++tile) {
            pending.begin[tile] = tiling.begin(2 * pair + tile);
            pending.first_new[tile] = tiling.first_new(2 * pair + tile);
            pending.end[tile] = pending.begin[tile] + tiling.tile_rows();
        }
        store(pending.integers);
    }
}

template <class F>
void panel_by_tiles(const uint8_t * panel, int64_t blocks, const Activations * activations, int64_t stride, int64_t tokens, float * sums) {
    for (int64_t i = 0; i < tokens * panel_rows; ++i) {
        sums[i] = 0.0f;
    }
    const Tiling tiling{tokens};
    Pending pending;
    for (int64_t block = 0; block < blocks; ++block) {
        const uint8_t * at = panel + block * F::block_bytes;
        add_half_block<F>(at, tiling, activations + block, stride, sums, pending);
        add_half_block<F>(at + F::half_bytes, tiling, activations + block, stride, sums + half_rows, pending);
    }
    add_pending<F>(pending, stride);
}

template <class F>
void matmul_by_tiles(const void * packed, int64_t rows, int64_t cols, const Batch & batch, float * y, int64_t y_stride,
                     int64_t panel_begin, int64_t panel_end) {
    for_stretches<F>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end,
                     [](const uint8_t * panel, int64_t blocks, const Activations * activations, int64_t stride, int64_t tokens,
                        float * sums) {
                         const amx::Tiles tiles(static_cast<int>(Tiling{tokens}.tile_rows()));
                         panel_by_tiles<F>(panel, blocks, activations, stride, tokens, sums);
                     });
}

void matmul_amx(Type type, const void * packed, int64_t rows, int64_t cols, const Batch & batch, float * y, int64_t y_stride,
                int64_t panel_begin, int64_t panel_end) {
    if (batch.tokens < fewest_tokens) {
        return avx512gfni_kernels.matmul(type, packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
    }
    switch (type) {
        case Type::q4_k: return matmul_by_tiles<Q4K>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
        case Type::q5_k: return matmul_by_tiles<Q5K>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
        case Type::q6_k: return matmul_by_tiles<Q6K>(packed, rows, cols, batch, y, y_stride, panel_begin, panel_end);
    }
}

}  // namespace

const Kernels avx512amx_kernels = {"avx512amx", matmul_amx};

}  // namespace head
