// Tier avx512amx: AMX int8 beside AVX-512 VNNI and VBMI (Sapphire Rapids and later). Batches of I2_S weights only: fewer than
// `fewest_tokens` tokens, grouped weights and five_trit are multiplied by avx512gfni's kernels, whose layouts these are.
//
// Instructions: tdpbsud adds to 16 x 16 sums of int32 the products of a tile of 16 tokens x 64 columns, signed, and a tile of
//   64 columns x 16 rows of weights, unsigned. A field of half a chunk of two_bit is one row of the latter: four columns of 16
//   rows of weights. So a panel's codes are unpacked to bytes, in order (vgf2p8affineqb shifts and masks), a strip of columns
//   at a time, and serve all tokens of a block.
// Algebra: as in x86_avx512vnni.cpp. Columns behind the last meet activations that are zero.
// Bounds, for max_cols = 65536: a sum over codes is at most 2 * 128 * 65536 = 2^24. The instruction does not saturate.

#include "quantize.h"
#include "x86_amx_tiles.h"
#include "x86_quantize512.h"

namespace ternary {
extern const Kernels avx512gfni_kernels;
extern const Kernels avx512amx_kernels;

namespace {

constexpr int64_t fewest_tokens = 9;  // see benchmarks/amx.md

// A strip's codes stay in the first-level cache beside the activations that pass through, a block's activations in the
// second-level cache and its outputs' pages in the first-level TLB's reach.
constexpr int64_t strip_steps = 8;
constexpr int64_t block_bytes_amx = 1 << 20;
constexpr int64_t block_tokens_amx = 128;
constexpr int64_t pair_tokens = 2 * tile_rows;

constexpr int64_t step_chunks = step_bytes / chunk_cols;
constexpr int64_t half_chunk_code_bytes = fields * 64;

template <int Field>
TERNARY_INLINE void unpack_field(__m512i half_chunk, uint8_t * codes) {
    const __m512i to_low_bits = _mm512_set1_epi64(0x0102000000000000 << (2 * Field));
    _mm512_store_si512(codes + 64 * Field, _mm512_gf2p8affine_epi64_epi8(half_chunk, to_low_bits, 0));
}

// The codes of the next panel are fetched while those of this one are unpacked.
TERNARY_INLINE void unpack_half_chunk(const uint8_t * packed, int64_t to_next_panel, uint8_t * codes) {
    prefetch_to_l2(packed + to_next_panel);
    const __m512i half_chunk = load512(packed);
    unpack_field<0>(half_chunk, codes);
    unpack_field<1>(half_chunk, codes);
    unpack_field<2>(half_chunk, codes);
    unpack_field<3>(half_chunk, codes);
}

// A strip of a panel's columns: `steps` steps, of which the last may have fewer than step_chunks chunks.
struct Strip {
    const uint8_t * packed;
    int64_t chunks, steps, to_next_panel;
    uint8_t * codes;  // [steps][step_code_bytes]

    // Behind the last chunk, where the activations are zero, the last chunk's codes do as well as any.
    TERNARY_INLINE void unpack(int64_t step) const { unpack(step, codes + step * step_code_bytes); }
    TERNARY_INLINE void unpack(int64_t step, uint8_t * to) const {
        TERNARY_UNROLL
        for (int64_t i = 0; i < step_chunks; ++i, to += half_chunk_code_bytes) {
            const uint8_t * from = packed + min64(step * step_chunks + i, chunks - 1) * chunk_bytes;
            unpack_half_chunk(from, to_next_panel, to);
            unpack_half_chunk(from + 64, to_next_panel, to + half_tile_bytes);
        }
    }
};

// Tokens [begin, end), in pairs of tiles of equal size: the last tile starts early enough to be full, and computes again what
// others have.
struct TokenBlock {
    int64_t begin, end;

    int64_t tokens() const { return end - begin; }
    int64_t pairs() const { return ceil_div(tokens(), pair_tokens); }
    int64_t tile_tokens() const { return ceil_div(tokens(), 2 * pairs()); }
    int64_t tile_begin(int64_t tile) const { return begin + min64(tile * tile_tokens(), tokens() - tile_tokens()); }
};

// Lines of outputs that are fetched, one row of them for each token, while the products are computed: where there are many
// outputs they come from far, and each is in a page of its own.
struct OutputLines {
    const char * first;
    int64_t stride, left;

    TERNARY_INLINE void fetch(int64_t rows) {
        for (; rows > 0 && left > 0; --rows, --left, first += stride) {
            prefetch_to_l2(first);
            prefetch_to_l2(first + 64);
            prefetch_to_l2(first + panel_rows * 4 - 1);
        }
    }
};

constexpr int64_t unpacked_ahead = 2;  // steps: the stores have reached the cache when a tile is loaded

// Two tiles of tokens by a strip, for the first two of a block also unpacking it.
template <bool unpack>
TERNARY_NOINLINE void multiply_strip(const Strip & strip, const int8_t * q0, const int8_t * q1, int64_t stride, bool first,
                                     int32_t * sums0, int32_t * sums1, OutputLines lines) {
    if (unpack) {
        for (int64_t step = 0; step < min64(unpacked_ahead, strip.steps); ++step) {
            strip.unpack(step);
        }
    }
    if (first) {
        clear_sums();
    } else {
        load_sums(sums0, sums1);
    }
    for (int64_t step = 0; step < strip.steps; ++step) {
        lines.fetch(4);
        // Loads of tiles before the stores: faster together with these strips (benchmarks/amx.md).
        add_step(q0 + step * step_bytes, q1 + step * step_bytes, stride, strip.codes + step * step_code_bytes);
        if (unpack && step + unpacked_ahead < strip.steps) {
            strip.unpack(step + unpacked_ahead);
        }
    }
    store_sums(sums0, sums1);
}

// A whole panel by the only two tiles of tokens: sums stay in their registers, and codes pass through a ring of `ring_steps`. They
// are fetched into the first-level cache shortly before their turn.
constexpr int64_t ring_steps = 8;
constexpr int64_t ring_ahead = 3;  // steps
constexpr int64_t ring_ahead_bytes = 2048;

TERNARY_NOINLINE void multiply_once(const Strip & panel, const int8_t * q0, const int8_t * q1, int64_t stride, int32_t * sums0,
                                    int32_t * sums1, OutputLines lines) {
    const auto slot = [&](int64_t step) { return panel.codes + step % ring_steps * step_code_bytes; };
    for (int64_t step = 0; step < min64(ring_ahead, panel.steps); ++step) {
        panel.unpack(step, slot(step));
    }
    clear_sums();
    for (int64_t step = 0; step < panel.steps; ++step) {
        lines.fetch(4);
        add_step(q0 + step * step_bytes, q1 + step * step_bytes, stride, slot(step));
        if (const int64_t next = step + ring_ahead; next < panel.steps) {
            const uint8_t * fetched = panel.packed + next * step_chunks * chunk_bytes + ring_ahead_bytes;
            TERNARY_UNROLL
            for (int64_t line = 0; line < step_chunks * chunk_bytes; line += 64) {
                prefetch(fetched + line);
            }
            panel.unpack(next, slot(next));
        }
    }
    store_sums(sums0, sums1);
}

template <class Output>
void multiply_panel_once(const uint8_t * panel, int64_t row, int64_t rows, int64_t cols, const QuantizedTokens & in,
                         const TokenBlock & block, const Output & out) {
    alignas(64) uint8_t codes[ring_steps * step_code_bytes];
    alignas(64) int32_t sums[pair_tokens * panel_rows];
    const int64_t tile_tokens = block.tile_tokens();
    const int64_t token0 = block.tile_begin(0), token1 = block.tile_begin(1);
    const Strip whole{panel, chunks_of(cols), ceil_div(cols, step_bytes), panel_bytes(cols), codes};
    const OutputLines lines{reinterpret_cast<const char *>(out.y + token0 * out.stride + row), out.stride * 4, block.tokens()};
    multiply_once(whole, in.q + token0 * in.stride, in.q + token1 * in.stride, in.stride, sums, sums + tile_tokens * panel_rows, lines);
    store_panel(sums, row, rows, in, token0, token0 + tile_tokens, out);
    store_panel(sums + tile_tokens * panel_rows, row, rows, in, token1, token1 + tile_tokens, out);
}

template <class Output>
void multiply_panel(const uint8_t * panel, int64_t row, int64_t rows, int64_t cols, const QuantizedTokens & in,
                    const TokenBlock & block, const Output & out) {
    alignas(64) uint8_t codes[strip_steps * step_code_bytes];
    alignas(64) int32_t sums[block_tokens_amx * panel_rows];
    const int64_t tile_tokens = block.tile_tokens();
    const int64_t pairs = block.pairs();
    const int64_t steps = ceil_div(cols, step_bytes);
    const int64_t strips = ceil_div(steps, strip_steps);
    for (int64_t i = 0; i < strips; ++i) {
        const int64_t begin = i * steps / strips;
        const int64_t end = (i + 1) * steps / strips;
        const int64_t first_chunk = begin * step_chunks;
        const Strip strip{panel + first_chunk * chunk_bytes, min64(end * step_chunks, chunks_of(cols)) - first_chunk, end - begin,
                          panel_bytes(cols), codes};
        for (int64_t pair = 0; pair < pairs; ++pair) {
            const int64_t token0 = block.tile_begin(2 * pair);
            const int64_t token1 = block.tile_begin(2 * pair + 1);
            int32_t * sums0 = sums + 2 * pair * tile_tokens * panel_rows;
            int32_t * sums1 = sums0 + tile_tokens * panel_rows;
            const int8_t * q = in.q + begin * step_bytes;
            const OutputLines lines{reinterpret_cast<const char *>(out.y + token0 * out.stride + row), out.stride * 4,
                                    i == 0 ? token1 + tile_tokens - token0 : 0};
            const auto multiply = pair == 0 ? multiply_strip<true> : multiply_strip<false>;
            multiply(strip, q + token0 * in.stride, q + token1 * in.stride, in.stride, i == 0, sums0, sums1, lines);
            if (i + 1 == strips) {
                store_panel(sums0, row, rows, in, token0, token0 + tile_tokens, out);
                store_panel(sums1, row, rows, in, token1, token1 + tile_tokens, out);
            }
        }
    }
}

template <class Output>
void matmul_by_tiles(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & in, const Output & out,
                     int64_t panel_begin, int64_t panel_end) {
    const uint8_t * panels = static_cast<const uint8_t *>(packed);
    const int64_t fitting = block_bytes_amx / in.stride / pair_tokens * pair_tokens;
    const int64_t blocks = ceil_div(in.tokens, fitting < pair_tokens ? pair_tokens : min64(fitting, block_tokens_amx));
    const int64_t block_tokens_here = ceil_div(in.tokens, blocks * pair_tokens) * pair_tokens;
    for (int64_t begin = 0; begin < in.tokens; begin += block_tokens_here) {
        const TokenBlock block{begin, min64(begin + block_tokens_here, in.tokens)};
        const Tiles tiles(block.tile_tokens());
        for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
            const auto multiply = block.pairs() == 1 ? multiply_panel_once<Output> : multiply_panel<Output>;
            multiply(panels + panel * panel_bytes(cols), panel * panel_rows, rows, cols, in, block, out);
        }
    }
}

void matmul_f32_amx(const void * packed, int64_t rows, int64_t cols, float weight_scale, const QuantizedTokens & tokens, float * y,
                    int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    if (tokens.tokens < fewest_tokens) {
        avx512gfni_kernels.two_bit.matmul(packed, rows, cols, weight_scale, tokens, y, y_stride, panel_begin, panel_end);
    } else {
        matmul_by_tiles(packed, rows, cols, tokens, FloatOutput{y, y_stride, weight_scale}, panel_begin, panel_end);
    }
}

void matmul_i32_amx(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & tokens, int32_t * y, int64_t y_stride,
                    int64_t panel_begin, int64_t panel_end) {
    if (tokens.tokens < fewest_tokens) {
        avx512gfni_kernels.two_bit.matmul_i32(packed, rows, cols, tokens, y, y_stride, panel_begin, panel_end);
    } else {
        matmul_by_tiles(packed, rows, cols, tokens, Int32Output{y, y_stride}, panel_begin, panel_end);
    }
}

// What avx512gfni computes. Its table cannot be copied into this one, which must be there before anything runs.

void quantize_groups_gfni(Grouped kind, const float * x, int64_t cols, int8_t * q, float * step, int32_t * minus_sum) {
    avx512gfni_kernels.grouped.quantize_token(kind, x, cols, q, step, minus_sum);
}

void matmul_grouped_gfni(Grouped kind, const void * packed, int64_t rows, int64_t cols, const GroupedTokens & tokens, float * y,
                         int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    avx512gfni_kernels.grouped.matmul(kind, packed, rows, cols, tokens, y, y_stride, panel_begin, panel_end);
}

void matmul_f32_five_trit(const void * packed, int64_t rows, int64_t cols, float weight_scale, const QuantizedTokens & tokens,
                          float * y, int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    avx512gfni_kernels.five_trit.matmul(packed, rows, cols, weight_scale, tokens, y, y_stride, panel_begin, panel_end);
}

void matmul_i32_five_trit(const void * packed, int64_t rows, int64_t cols, const QuantizedTokens & tokens, int32_t * y,
                          int64_t y_stride, int64_t panel_begin, int64_t panel_end) {
    avx512gfni_kernels.five_trit.matmul_i32(packed, rows, cols, tokens, y, y_stride, panel_begin, panel_end);
}

void pack_five_trits(const uint8_t * two_bit, int64_t chunks, uint8_t * five_trit) {
    avx512gfni_kernels.pack_five_trits(two_bit, chunks, five_trit);
}

}  // namespace

const Kernels avx512amx_kernels = {Tier::avx512amx,
                                   "avx512amx",
                                   quantize_token<Quantizer512>,
                                   {matmul_f32_amx, matmul_i32_amx},
                                   {quantize_groups_gfni, matmul_grouped_gfni},
                                   {matmul_f32_five_trit, matmul_i32_five_trit},
                                   pack_five_trits,
                                   Layout::two_bit};

}  // namespace ternary
