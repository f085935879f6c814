// AMX with bfloat16 (Sapphire Rapids and later): tiles of 16 rows of 64 bytes, and
//
//   tdpbf16ps   sums[16][16] += left[16][32] * right[16][16][2], bfloat16 products, float32 sums; 8,192 multiply-adds
//
// A bfloat16 has 8 bits, a float16 11, and a query or a weight 24. So each number is the sum of two bfloat16s, high and low:
// keys and values exactly, queries and weights to 16 bits or more. A product is high * high + high * low + low * high; what is
// left out, and the rest of a query or a weight, are below 2^-16 of it. Three products of this kind are five times as fast as
// one in float32.
//
//   scores [key][lane]   left: keys, 16 times 32 dimensions         right: queries, pairs of dimensions times 16 lanes
//   results [d][lane]    left: values, 16 dimensions times 32 keys  right: weights, pairs of keys times 16 lanes
//
// Two tiles on the left times two on the right at once: four tiles hold sums, two the left, two the right. Other instructions
// are AVX-512 F and BW, with FMA and F16C, which every such CPU has. Tiles round to nearest, and take denormals for 0, of
// which the low part of a float16 is none.

#include "amx.h"
#include "attend.h"
#include "prefill.h"
#include "x86_512.h"

namespace attention {
extern const Kernels amx_kernels;

namespace {

constexpr int64_t tile_bytes = 1024, tile_row_bytes = 64;

template <int Tile>
inline void load_tile(const void * from, int64_t row_bytes = tile_row_bytes) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int Tile>
inline void store_tile(void * to, int64_t row_bytes) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(Tile) : "memory");
}
template <int Tile>
inline void zero_tile() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
template <int Sums, int Left, int Right>
inline void multiply_tiles() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Left), "i"(Right));
}

// sums 0 to 3 += left 4 and 5 (or 4 alone) times right 6 and 7
template <int Lefts>
inline void multiply() {
    multiply_tiles<0, 4, 6>();
    multiply_tiles<1, 4, 7>();
    if (Lefts == 2) {
        multiply_tiles<2, 5, 6>();
        multiply_tiles<3, 5, 7>();
    }
}

// The upper halves of 32 floats, rounded to nearest, and what remains, as bfloat16s in the upper halves of theirs.
struct Split {
    __m512i high, low;
};
inline __m512i rounded(__m512i x) { return _mm512_add_epi32(x, _mm512_set1_epi32(0x8000)); }
inline __m512i upper(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))); }
inline Split split(__m512 x) {
    const __m512i high = upper(rounded(_mm512_castps_si512(x)));
    return {high, _mm512_castps_si512(_mm512_sub_ps(x, _mm512_castsi512_ps(high)))};
}

// The upper halves of a, then those of b.
inline __m512i joined(__m512i a, __m512i b) {
    alignas(64) static constexpr uint16_t order[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                       33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_permutex2var_epi16(a, _mm512_load_si512(order), b);
}
// The upper half of each element of a below that of b.
inline __m512i paired(__m512i a, __m512i b) { return _mm512_or_si512(_mm512_srli_epi32(a, 16), upper(b)); }

inline void transpose(__m512i (&v)[16]) {
    __m512 f[16];
    for (int i = 0; i < 16; ++i) {
        f[i] = _mm512_castsi512_ps(v[i]);
    }
    Avx512::transpose(f);
    for (int i = 0; i < 16; ++i) {
        v[i] = _mm512_castps_si512(f[i]);
    }
}

struct AmxProducts {
    using Isa = Avx512;
    using Vector = Isa::Vector;
    static constexpr int64_t lanes = 32, keys = 128;
    static constexpr int64_t rows_limit = 512, cached_floats = 512 * 128;
    static constexpr int64_t right_tiles = lanes / 16, key_tiles = keys / 16, key_steps = keys / 32;

    using Session = amx::Tiles;

    // High and low tiles lie side by side; there are `steps` of 32 dimensions.
    static int64_t steps(int64_t dim) { return (dim + 31) / 32; }
    static size_t query_bytes(int64_t dim) { return static_cast<size_t>(steps(dim) * right_tiles * 2 * tile_bytes); }
    static size_t key_bytes(int64_t dim) { return static_cast<size_t>(key_tiles * steps(dim) * 2 * tile_bytes); }
    static size_t value_bytes(int64_t dim) { return static_cast<size_t>(dim / 16 * key_steps * 2 * tile_bytes); }
    static size_t weight_bytes() { return static_cast<size_t>(key_steps * right_tiles * 2 * tile_bytes); }

    static void store(void * to, __m512i x) { _mm512_store_si512(to, x); }

    // [step][right tile][high, low][pair of dimensions][lane]
    static void pack_queries(const float * const * rows, int64_t dim, float factor, char * to) {
        const Vector by = Isa::all(factor);
        for (int64_t d = 0; d < dim; d += 32) {
            for (int64_t lane = 0; lane < lanes; lane += 16, to += 2 * tile_bytes) {
                __m512i high[16], low[16];
                for (int64_t i = 0; i < 16; ++i) {
                    const float * const row = rows[lane + i];
                    const bool half = d + 16 == dim;
                    const Split a = split(row == nullptr ? Isa::zero() : Isa::mul(Isa::load(row + d), by));
                    const Split b = split(row == nullptr || half ? Isa::zero() : Isa::mul(Isa::load(row + d + 16), by));
                    high[i] = joined(a.high, b.high);
                    low[i] = joined(rounded(a.low), rounded(b.low));
                }
                transpose(high);
                transpose(low);
                for (int64_t i = 0; i < 16; ++i) {
                    store(to + i * tile_row_bytes, high[i]);
                    store(to + tile_bytes + i * tile_row_bytes, low[i]);
                }
            }
        }
    }

    static void store_halves(char * to, __m256i first, __m256i second) {
        const Split a = split(_mm512_cvtph_ps(first)), b = split(_mm512_cvtph_ps(second));
        store(to, joined(a.high, b.high));
        store(to + tile_bytes, joined(a.low, b.low));
    }

    static __m256i load_halves(const uint16_t * from) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    }

    // [key tile][step][high, low][key][dimension]
    ATTENTION_NOINLINE static void pack_keys(const uint16_t * from, int64_t stride, const uint8_t * seen, int64_t dim,
                                             char * to) {
        const __m256i nothing = _mm256_setzero_si256();
        for (int64_t key = 0; key < keys; ++key) {
            char * const row = to + key / 16 * steps(dim) * 2 * tile_bytes + key % 16 * tile_row_bytes;
            for (int64_t d = 0; d < dim; d += 32) {
                const bool first = seen[key] != 0, second = first && d + 16 < dim;
                store_halves(row + d / 32 * 2 * tile_bytes, first ? load_halves(from + key * stride + d) : nothing,
                             second ? load_halves(from + key * stride + d + 16) : nothing);
            }
        }
    }

    // [tile of dimensions][step of keys][high, low][dimension][key]
    ATTENTION_NOINLINE static void pack_values(const uint16_t * from, int64_t stride, const uint8_t * seen, int64_t dim,
                                               char * to) {
        alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m512i pairs = _mm512_load_si512(order);
        for (int64_t d = 0; d < dim; d += 16) {
            for (int64_t step = 0; step < key_steps; ++step, to += 2 * tile_bytes) {
                __m512i v[16];  // pairs of keys, in each 16 dimensions
                for (int64_t i = 0; i < 16; ++i) {
                    const int64_t key = 32 * step + 2 * i;
                    const __m256i a = seen[key] ? load_halves(from + key * stride + d) : _mm256_setzero_si256();
                    const __m256i b = seen[key + 1] ? load_halves(from + (key + 1) * stride + d) : _mm256_setzero_si256();
                    v[i] = _mm512_permutexvar_epi16(pairs, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
                }
                transpose(v);
                for (int64_t i = 0; i < 16; ++i) {
                    store_halves(to + i * tile_row_bytes, _mm512_castsi512_si256(v[i]), _mm512_extracti64x4_epi64(v[i], 1));
                }
            }
        }
    }

    // The product of `Lefts` tiles with two, over steps that lie so many bytes apart; the second left tile lies left_bytes
    // behind the first.
    template <int Lefts>
    static void add_products(const char * left, int64_t left_bytes, int64_t left_step, const char * right, int64_t count) {
        for (int64_t step = 0; step < count; ++step, left += left_step, right += right_tiles * 2 * tile_bytes) {
            load_tile<4>(left);
            if (Lefts == 2) {
                load_tile<5>(left + left_bytes);
            }
            load_tile<6>(right + tile_bytes);
            load_tile<7>(right + 3 * tile_bytes);
            multiply<Lefts>();  // high, low
            load_tile<6>(right);
            load_tile<7>(right + 2 * tile_bytes);
            multiply<Lefts>();  // high, high
            load_tile<4>(left + tile_bytes);
            if (Lefts == 2) {
                load_tile<5>(left + left_bytes + tile_bytes);
            }
            multiply<Lefts>();  // low, high
        }
    }

    template <int Lefts>
    static void store_sums(float * to) {
        constexpr int64_t row_bytes = lanes * sizeof(float);
        store_tile<0>(to, row_bytes);
        store_tile<1>(to + 16, row_bytes);
        if (Lefts == 2) {
            store_tile<2>(to + 16 * lanes, row_bytes);
            store_tile<3>(to + 16 * lanes + 16, row_bytes);
        }
    }

    template <int Lefts>
    static void score_tiles(const char * queries, const char * packed, int64_t dim, int64_t key_tile, float * to) {
        const int64_t bytes = steps(dim) * 2 * tile_bytes;  // of a tile of keys
        zero_tile<0>();
        zero_tile<1>();
        if (Lefts == 2) {
            zero_tile<2>();
            zero_tile<3>();
        }
        add_products<Lefts>(packed + key_tile * bytes, bytes, 2 * tile_bytes, queries, steps(dim));
        store_sums<Lefts>(to + key_tile * 16 * lanes);
    }

    ATTENTION_NOINLINE static void scores(const char * queries, const char * packed, int64_t dim, int64_t begin,
                                          int64_t end, float * to) {
        int64_t tile = begin / 16;
        const int64_t last = (end + 15) / 16;
        for (; tile + 1 < last; tile += 2) {
            score_tiles<2>(queries, packed, dim, tile, to);
        }
        if (tile < last) {
            score_tiles<1>(queries, packed, dim, tile, to);
        }
    }

    // [step of keys][right tile][high, low][pair of keys][lane]
    static char * weights_at(char * weights, int64_t key, int64_t vector) {
        return weights + (key / 32 * right_tiles + vector) * 2 * tile_bytes + key % 32 / 2 * tile_row_bytes;
    }
    static void put_weights(char * weights, int64_t key, int64_t vector, Vector a, Vector b) {
        const Split x = split(a), y = split(b);
        char * const at = weights_at(weights, key, vector);
        store(at, paired(x.high, y.high));
        store(at + tile_bytes, paired(rounded(x.low), rounded(y.low)));
    }
    static void clear_weights(char * weights, int64_t begin, int64_t end) {
        for (int64_t key = begin; key < end; key += 2) {
            for (int64_t vector = 0; vector < right_tiles; ++vector) {
                put_weights(weights, key, vector, Isa::zero(), Isa::zero());
            }
        }
    }

    template <int Lefts>
    static void gather_tiles(const char * packed, const char * weights, int64_t begin, int64_t end, int64_t d,
                             float * results) {
        constexpr int64_t row_bytes = lanes * sizeof(float), bytes = key_steps * 2 * tile_bytes;  // bytes: of 16 dimensions
        float * const to = results + d * lanes;
        load_tile<0>(to, row_bytes);
        load_tile<1>(to + 16, row_bytes);
        if (Lefts == 2) {
            load_tile<2>(to + 16 * lanes, row_bytes);
            load_tile<3>(to + 16 * lanes + 16, row_bytes);
        }
        add_products<Lefts>(packed + d / 16 * bytes + begin * 2 * tile_bytes, bytes, 2 * tile_bytes,
                            weights + begin * right_tiles * 2 * tile_bytes, end - begin);
        store_sums<Lefts>(to);
    }

    ATTENTION_NOINLINE static void gather(const char * packed, char * weights, int64_t dim, int64_t begin, int64_t end,
                                          float * results) {
        const int64_t first = begin / 32, last = (end + 31) / 32;
        clear_weights(weights, first * 32, begin);
        clear_weights(weights, end, last * 32);
        int64_t d = 0;
        for (; d + 16 < dim; d += 32) {
            gather_tiles<2>(packed, weights, first, last, d, results);
        }
        if (d < dim) {
            gather_tiles<1>(packed, weights, first, last, d, results);
        }
    }
};

}  // namespace

const Kernels amx_kernels = {
    "amx",
    attend<Avx512>,
    Prefill<AmxProducts>::run,
    Prefill<AmxProducts>::scratch_bytes,
    Prefill<AmxProducts>::most_rows,
    AmxProducts::lanes,
};

}  // namespace attention
