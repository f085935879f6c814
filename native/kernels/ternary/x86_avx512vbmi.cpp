// Tier avx512vbmi: AVX-512 VNNI and VBMI (Ice Lake, Zen 4 and later). Offers five_trit, 1.6 bits a weight, but prefers two_bit:
// on Zen 4 the smaller layout gains 3% in decode with one thread, loses 4% with two, and loses 3 to 5% in prefill
// (benchmarks/kernels.md).
//
// Instructions: those of x86_avx512vnni.cpp, and vpermi2b zmm, which looks 64 bytes up in a table of 128 by the low 7 bits
//   of each.
// Algebra: as there. Four codes of two bits come from a table; vpsubb from 0xaa where bit 7 is set exchanges codes 0 and 2 in
//   all four (no borrow: no code exceeds 2). The fifth code comes from a table of 64 bytes (vpermb).
// Bounds: as there. Unshifted, field 3 adds up to 128 * 128 in a fifth of the columns; fields 0 and 4 share accumulators:
//   2 * 128 in two fifths.

#include "x86_vnni512.h"

#include <cstddef>

namespace ternary {
extern const Kernels avx512vbmi_kernels;

namespace {

struct UnpackTables {
    alignas(64) uint8_t four[128] = {};  // by bits 0 to 6: four codes of two bits
    alignas(64) uint8_t fifth[64] = {};  // by bits 0 to 5: one code
    uint32_t bytes[5] = {code_negation * 0x01010101u, 0x03030303u, 0x0c0c0c0cu, 0x30303030u, 0xc0c0c0c0u};  // and the masks
    constexpr UnpackTables() {
        for (int byte = 0; byte < 128; ++byte) {
            const int m = 2 * (byte % 64 % five_trit_pairs) + byte / 64;
            four[byte] = static_cast<uint8_t>(m % 3 | m / 3 % 3 << 2 | m / 9 % 3 << 4 | m / 27 << 6);
            fifth[byte % 64] = static_cast<uint8_t>(byte % 64 / five_trit_pairs);
        }
    }
};
constexpr UnpackTables unpack_tables;

// 64 bytes of a chunk as codes: fields 0 to 3 in two bits each, and field 4.
struct Unpacked {
    __m512i four, fifth;
};

struct Unpacker {
    __m512i low = load512(unpack_tables.four), high = load512(unpack_tables.four + 64), last = load512(unpack_tables.fifth);
    __m512i negation = _mm512_set1_epi8(static_cast<char>(code_negation));

    TERNARY_INLINE __m512i look_up(__m512i bytes) const { return _mm512_permutex2var_epi8(low, bytes, high); }
    TERNARY_INLINE __m512i negate(__m512i four, __mmask64 where) const {
        return _mm512_mask_sub_epi8(four, where, negation, four);
    }
    TERNARY_INLINE __m512i look_up_fifth(__m512i bytes) const { return _mm512_permutexvar_epi8(bytes, last); }

    TERNARY_INLINE Unpacked operator()(__m512i bytes) const {
        return {negate(look_up(bytes), _mm512_movepi8_mask(bytes)), look_up_fifth(bytes)};
    }
};

struct FiveTrit512 {
    static constexpr int tile_tokens = 10;
    static constexpr int unshifted_tokens = 2;

    // 10 tokens in registers beside the tables are 94% of the peak; two_bit's 12 reach 98%, for the price of a tenth of a tile.
    using TwoBit = Avx512Vnni;
    static constexpr int64_t expand_tokens = 24;

    static constexpr int64_t prefetch_bytes(int tokens) { return tokens == 1 ? 512 : 4096; }

    static void expand(const uint8_t * panel, int64_t chunks, uint8_t * two_bit);

    template <int T>
    static void tile(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride, int32_t * sums) {
        if constexpr (T == 1) {
            tile_one(panel, chunks, q, sums);
        } else if constexpr (T <= unshifted_tokens) {
            tile_unshifted<T>(panel, chunks, q, stride, sums);
        } else {
            tile_shifted<T>(panel, chunks, q, stride, sums);
        }
    }

    template <int T>
    using Sums = __m512i[T][2][4];

    // A mask for each code of a half and no shift, as in Avx512Vnni; field 4 shares field 0's accumulators.
    template <int Field, int T>
    static TERNARY_INLINE void add_unshifted(const Unpacked & codes, int half, const int8_t * quads, int64_t stride,
                                             Sums<T> & sum_i32x16) {
        __m512i masked = codes.fifth;
        if constexpr (Field < 4) {
            masked = _mm512_and_si512(codes.four, _mm512_set1_epi8(static_cast<char>(3 << (2 * Field))));
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            add_products_i32(sum_i32x16[t][half][Field % 4], masked, broadcast_quad512(quads + t * stride + Field * step_cols));
        }
    }

    template <int T>
    static TERNARY_INLINE void add_half(const Unpacked & codes, int half, const int8_t * q, int64_t stride, Sums<T> & sum_i32x16) {
        add_unshifted<0, T>(codes, half, q, stride, sum_i32x16);
        add_unshifted<1, T>(codes, half, q, stride, sum_i32x16);
        add_unshifted<2, T>(codes, half, q, stride, sum_i32x16);
        add_unshifted<3, T>(codes, half, q, stride, sum_i32x16);
        add_unshifted<4, T>(codes, half, q, stride, sum_i32x16);
    }

    // Sums of a token by half and field, unshifted. The next chunk is unpacked between the products of this one.
    // Written out because the order counts. This one, among the best of 160 tried on Zen 4, takes 13.9 cycles a chunk by itself
    // and 15.0 to 15.8 in a panel of 2,560 columns; GCC's 19.4, or 15.8 to 16.4 with each step held in place.
    // zmm8-11: codes of the chunk, by half; 12-13 the next one's bytes; 14-17 its codes; 18-20 one field; 21-23 tables;
    // 24 negation; 25-28 masks.
    static TERNARY_INLINE void add_one_token(const uint8_t * p, int64_t chunks, const int8_t * q, __m512i (&sums)[2][4]) {
        static_assert(chunk_bytes == 128 && five_trit_chunk_cols == 20 && prefetch_bytes(1) == 512, "as in the code below");
        static_assert(offsetof(UnpackTables, fifth) == 128 && offsetof(UnpackTables, bytes) == 192, "as in the code below");
        __asm__ volatile(
            "vpxord %[sum00], %[sum00], %[sum00]\n"
            "vpxord %[sum01], %[sum01], %[sum01]\n"
            "vpxord %[sum02], %[sum02], %[sum02]\n"
            "vpxord %[sum03], %[sum03], %[sum03]\n"
            "vpxord %[sum10], %[sum10], %[sum10]\n"
            "vpxord %[sum11], %[sum11], %[sum11]\n"
            "vpxord %[sum12], %[sum12], %[sum12]\n"
            "vpxord %[sum13], %[sum13], %[sum13]\n"
            "vmovdqa64 (%[tables]), %%zmm21\n"
            "vmovdqa64 64(%[tables]), %%zmm22\n"
            "vmovdqa64 128(%[tables]), %%zmm23\n"
            "vpbroadcastd 192(%[tables]), %%zmm24\n"
            "vpbroadcastd 196(%[tables]), %%zmm25\n"
            "vpbroadcastd 200(%[tables]), %%zmm26\n"
            "vpbroadcastd 204(%[tables]), %%zmm27\n"
            "vpbroadcastd 208(%[tables]), %%zmm28\n"
            "vmovdqu64 (%[p]), %%zmm12\n"
            "vmovdqu64 64(%[p]), %%zmm13\n"
            "vmovdqa64 %%zmm12, %%zmm8\n"
            "vmovdqa64 %%zmm13, %%zmm9\n"
            "vpmovb2m %%zmm12, %%k1\n"
            "vpmovb2m %%zmm13, %%k2\n"
            "vpermi2b %%zmm22, %%zmm21, %%zmm8\n"
            "vpermi2b %%zmm22, %%zmm21, %%zmm9\n"
            "vpermb %%zmm23, %%zmm12, %%zmm10\n"
            "vpermb %%zmm23, %%zmm13, %%zmm11\n"
            "vpsubb %%zmm8, %%zmm24, %%zmm8%{%%k1%}\n"
            "vpsubb %%zmm9, %%zmm24, %%zmm9%{%%k2%}\n"
            "subq $-128, %[p]\n"
            "decq %[chunks]\n"
            "jz 1f\n"
            ".p2align 6\n"
            "0:\n"
            "vmovdqu64 (%[p]), %%zmm12\n"
            "vmovdqa64 %%zmm12, %%zmm14\n"
            "prefetcht0 512(%[p])\n"
            "vmovdqu64 64(%[p]), %%zmm13\n"
            "vmovdqa64 %%zmm13, %%zmm15\n"
            "prefetcht0 576(%[p])\n"
            "vpandd %%zmm8, %%zmm25, %%zmm18\n"
            "vpermi2b %%zmm22, %%zmm21, %%zmm14\n"
            "vpermi2b %%zmm22, %%zmm21, %%zmm15\n"
            "vpdpbusd (%[q])%{1to16%}, %%zmm18, %[sum00]\n"
            "vpandd %%zmm9, %%zmm25, %%zmm19\n"
            "vpmovb2m %%zmm12, %%k1\n"
            "vpdpbusd (%[q])%{1to16%}, %%zmm19, %[sum10]\n"
            "vpandd %%zmm8, %%zmm26, %%zmm19\n"
            "vpdpbusd 4(%[q])%{1to16%}, %%zmm19, %[sum01]\n"
            "vpandd %%zmm9, %%zmm26, %%zmm20\n"
            "vpdpbusd 4(%[q])%{1to16%}, %%zmm20, %[sum11]\n"
            "vpandd %%zmm8, %%zmm27, %%zmm20\n"
            "vpmovb2m %%zmm13, %%k2\n"
            "vpdpbusd 8(%[q])%{1to16%}, %%zmm20, %[sum02]\n"
            "vpsubb %%zmm14, %%zmm24, %%zmm14%{%%k1%}\n"
            "vpsubb %%zmm15, %%zmm24, %%zmm15%{%%k2%}\n"
            "vpermb %%zmm23, %%zmm12, %%zmm16\n"
            "vpandd %%zmm9, %%zmm27, %%zmm18\n"
            "vpermb %%zmm23, %%zmm13, %%zmm17\n"
            "vpdpbusd 8(%[q])%{1to16%}, %%zmm18, %[sum12]\n"
            "vpandd %%zmm8, %%zmm28, %%zmm18\n"
            "vpdpbusd 12(%[q])%{1to16%}, %%zmm18, %[sum03]\n"
            "vpandd %%zmm9, %%zmm28, %%zmm19\n"
            "vpdpbusd 12(%[q])%{1to16%}, %%zmm19, %[sum13]\n"
            "vpdpbusd 16(%[q])%{1to16%}, %%zmm10, %[sum00]\n"
            "vpdpbusd 16(%[q])%{1to16%}, %%zmm11, %[sum10]\n"
            "vmovdqa64 %%zmm14, %%zmm8\n"
            "vmovdqa64 %%zmm15, %%zmm9\n"
            "vmovdqa64 %%zmm16, %%zmm10\n"
            "vmovdqa64 %%zmm17, %%zmm11\n"
            "subq $-128, %[p]\n"
            "addq $20, %[q]\n"
            "decq %[chunks]\n"
            "jnz 0b\n"
            "1:\n"
            "vpandd %%zmm8, %%zmm25, %%zmm18\n"
            "vpandd %%zmm9, %%zmm25, %%zmm19\n"
            "vpdpbusd (%[q])%{1to16%}, %%zmm18, %[sum00]\n"
            "vpdpbusd (%[q])%{1to16%}, %%zmm19, %[sum10]\n"
            "vpandd %%zmm8, %%zmm26, %%zmm18\n"
            "vpandd %%zmm9, %%zmm26, %%zmm19\n"
            "vpdpbusd 4(%[q])%{1to16%}, %%zmm18, %[sum01]\n"
            "vpdpbusd 4(%[q])%{1to16%}, %%zmm19, %[sum11]\n"
            "vpandd %%zmm8, %%zmm27, %%zmm18\n"
            "vpandd %%zmm9, %%zmm27, %%zmm19\n"
            "vpdpbusd 8(%[q])%{1to16%}, %%zmm18, %[sum02]\n"
            "vpdpbusd 8(%[q])%{1to16%}, %%zmm19, %[sum12]\n"
            "vpandd %%zmm8, %%zmm28, %%zmm18\n"
            "vpandd %%zmm9, %%zmm28, %%zmm19\n"
            "vpdpbusd 12(%[q])%{1to16%}, %%zmm18, %[sum03]\n"
            "vpdpbusd 12(%[q])%{1to16%}, %%zmm19, %[sum13]\n"
            "vpdpbusd 16(%[q])%{1to16%}, %%zmm10, %[sum00]\n"
            "vpdpbusd 16(%[q])%{1to16%}, %%zmm11, %[sum10]\n"
            : [p] "+r"(p), [q] "+r"(q), [chunks] "+r"(chunks),
              [sum00] "=&v"(sums[0][0]), [sum01] "=&v"(sums[0][1]), [sum02] "=&v"(sums[0][2]), [sum03] "=&v"(sums[0][3]),
              [sum10] "=&v"(sums[1][0]), [sum11] "=&v"(sums[1][1]), [sum12] "=&v"(sums[1][2]), [sum13] "=&v"(sums[1][3])
            : [tables] "r"(&unpack_tables)
            : "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18",
              "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27", "zmm28", "k1", "k2",
              "memory", "cc");
    }

    static TERNARY_INLINE void store_unshifted(const __m512i (&s)[2][4], int32_t * sums) {
        TERNARY_UNROLL
        for (int half = 0; half < 2; ++half) {
            const __m512i low = _mm512_add_epi32(s[half][0], _mm512_srai_epi32(s[half][1], 2));
            const __m512i high = _mm512_add_epi32(_mm512_srai_epi32(s[half][2], 4), _mm512_srai_epi32(s[half][3], 6));
            _mm512_store_si512(sums + half * 16, _mm512_add_epi32(low, high));
        }
    }

    TERNARY_NOINLINE static void tile_one(const uint8_t * panel, int64_t chunks, const int8_t * q, int32_t * sums) {
        __m512i sum_i32x16[2][4];
        add_one_token(panel, chunks, q, sum_i32x16);
        store_unshifted(sum_i32x16, sums);
    }

    template <int T>
    TERNARY_NOINLINE static void tile_unshifted(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride,
                                                int32_t * sums) {
        const Unpacker unpack;
        Sums<T> sum_i32x16;
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            TERNARY_UNROLL
            for (int field = 0; field < 4; ++field) {
                sum_i32x16[t][0][field] = sum_i32x16[t][1][field] = _mm512_setzero_si512();
            }
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk, q += five_trit_chunk_cols) {
            const uint8_t * p = panel + chunk * chunk_bytes;
            prefetch(p + prefetch_bytes(T));
            prefetch(p + prefetch_bytes(T) + 64);
            add_half<T>(unpack(load512(p)), 0, q, stride, sum_i32x16);
            add_half<T>(unpack(load512(p + 64)), 1, q, stride, sum_i32x16);
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            store_unshifted(sum_i32x16[t], sums + t * panel_rows);
        }
    }

    template <int T>
    static TERNARY_INLINE void add_codes(__m512i codes0, __m512i codes1, const int8_t * q, int64_t stride,
                                         __m512i (&sum_i32x16)[T][2]) {
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            const __m512i quad = broadcast_quad512(q + t * stride);
            add_products_i32(sum_i32x16[t][0], codes0, quad);
            add_products_i32(sum_i32x16[t][1], codes1, quad);
        }
    }

    template <int Field, int T>
    static TERNARY_INLINE void add_field(__m512i half0, __m512i half1, const int8_t * q, int64_t stride,
                                         __m512i (&sum_i32x16)[T][2]) {
        add_codes<T>(Avx512Vnni::codes_of<Field>(half0), Avx512Vnni::codes_of<Field>(half1), q + Field * step_cols, stride,
                     sum_i32x16);
    }

    template <int T>
    TERNARY_NOINLINE static void tile_shifted(const uint8_t * panel, int64_t chunks, const int8_t * q, int64_t stride,
                                              int32_t * sums) {
        const Unpacker unpack;
        __m512i sum_i32x16[T][2];
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            sum_i32x16[t][0] = sum_i32x16[t][1] = _mm512_setzero_si512();
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const uint8_t * p = panel + chunk * chunk_bytes;
            const int8_t * quads = q + chunk * five_trit_chunk_cols;
            prefetch(p + prefetch_bytes(T));
            prefetch(p + prefetch_bytes(T) + 64);
            const Unpacked half0 = unpack(load512(p));
            const Unpacked half1 = unpack(load512(p + 64));
            add_codes<T>(half0.fifth, half1.fifth, quads + 4 * step_cols, stride, sum_i32x16);
            add_field<0, T>(half0.four, half1.four, quads, stride, sum_i32x16);
            add_field<1, T>(half0.four, half1.four, quads, stride, sum_i32x16);
            add_field<2, T>(half0.four, half1.four, quads, stride, sum_i32x16);
            add_field<3, T>(half0.four, half1.four, quads, stride, sum_i32x16);
        }
        TERNARY_UNROLL
        for (int t = 0; t < T; ++t) {
            _mm512_store_si512(sums + t * panel_rows, sum_i32x16[t][0]);
            _mm512_store_si512(sums + t * panel_rows + 16, sum_i32x16[t][1]);
        }
    }
};

// 64 bytes of four chunks as 64 bytes of five chunks of two_bit: the same codes, four to a byte.
TERNARY_INLINE void expand_four(const Unpacked (&in)[4], uint8_t * two_bit) {
    // a in the bits of `low`, b in the others; what a shift of words carries over from a neighbour is in the other's bits.
    const auto join = [](int low, __m512i a, __m512i b) {
        return _mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(low)), a, b, 0xca);
    };
    const auto up = [](__m512i codes, int by) { return _mm512_slli_epi16(codes, 2 * by); };
    const auto down = [](__m512i codes, int by) { return _mm512_srli_epi16(codes, 2 * by); };
    const __m512i out[5] = {in[0].four,
                            join(0x03, in[0].fifth, up(in[1].four, 1)),
                            join(0x0f, join(0x03, down(in[1].four, 3), up(in[1].fifth, 1)), up(in[2].four, 2)),
                            join(0x3f, join(0x0f, down(in[2].four, 2), up(in[2].fifth, 2)), up(in[3].four, 3)),
                            join(0x3f, down(in[3].four, 1), up(in[3].fifth, 3))};
    TERNARY_UNROLL
    for (int i = 0; i < 5; ++i) {
        _mm512_store_si512(two_bit + i * chunk_bytes, out[i]);
    }
}

TERNARY_NOINLINE void expand_five_trits(const uint8_t * five_trit, int64_t chunks, uint8_t * two_bit) {
    const Unpacker unpack;
    for (int64_t chunk = 0; chunk < chunks; chunk += 4, two_bit += 5 * chunk_bytes) {
        const uint8_t * p = five_trit + chunk * chunk_bytes;
        const int64_t last = min64(3, chunks - 1 - chunk) * chunk_bytes;  // read again where there is none: meets zeros
        for (int64_t half = 0; half < chunk_bytes; half += 64) {
            const Unpacked in[4] = {unpack(load512(p + half)), unpack(load512(p + half + min64(chunk_bytes, last))),
                                    unpack(load512(p + half + min64(2 * chunk_bytes, last))), unpack(load512(p + half + last))};
            expand_four(in, two_bit + half);
        }
    }
}

void FiveTrit512::expand(const uint8_t * panel, int64_t chunks, uint8_t * two_bit) { expand_five_trits(panel, chunks, two_bit); }

// From four codes of two_bit, one byte, to the byte of five_trit whose fifth code is 0.
struct PackTables {
    alignas(64) uint8_t packed[256] = {};
    constexpr PackTables() {
        for (int byte = 0; byte < 256; ++byte) {
            const int n = (byte & 3) + 3 * (byte >> 2 & 3) + 9 * (byte >> 4 & 3) + 27 * (byte >> 6);
            const int m = n > 80 ? 0 : n > 40 ? 80 - n : n;  // beyond 80: a code 3, which never comes here
            packed[byte] = static_cast<uint8_t>(m / 2 | m % 2 << 6 | (n > 40) << 7);
        }
    }
};
constexpr PackTables pack_tables;

// Fields 0..3 of a five_trit byte from step `step` of two_bit on; steps behind the last chunk hold code 1.
TERNARY_INLINE __m512i two_bit_chunk(const uint8_t * two_bit, int64_t chunks, int64_t chunk) {
    return chunk < chunks ? load512(two_bit + chunk * chunk_bytes) : _mm512_set1_epi8(0x55);
}

// Steps 5 * Out .. 5 * Out + 4 of the 20 in five chunks.
template <int Out>
TERNARY_INLINE __m512i pack_five(const __m512i (&two_bit)[5]) {
    constexpr int first = 5 * Out / 4, field = 5 * Out % 4;  // of the first of the four steps
    __m512i four = two_bit[first];
    if constexpr (field > 0) {
        const __m512i low = _mm512_set1_epi8(static_cast<char>(0xff >> (2 * field)));
        const __m512i a = _mm512_srli_epi16(two_bit[first], 2 * field);
        const __m512i b = _mm512_slli_epi16(two_bit[first + 1], 8 - 2 * field);
        four = _mm512_ternarylogic_epi32(low, a, b, 0xca);  // low ? a : b
    }
    constexpr int last = (5 * Out + 4) / 4, last_field = (5 * Out + 4) % 4;
    const __m512i fifth = _mm512_and_si512(_mm512_srli_epi16(two_bit[last], 2 * last_field), _mm512_set1_epi8(3));
    const __m512i low = _mm512_permutex2var_epi8(load512(pack_tables.packed), four, load512(pack_tables.packed + 64));
    const __m512i high = _mm512_permutex2var_epi8(load512(pack_tables.packed + 128), four, load512(pack_tables.packed + 192));
    const __m512i without_fifth = _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(four), high);
    const __m512i offsets = _mm512_set1_epi32(five_trit_pairs << 8 | 2 * five_trit_pairs << 16);
    return _mm512_add_epi8(without_fifth, _mm512_shuffle_epi8(offsets, fifth));
}

void pack_five_trits_vbmi(const uint8_t * two_bit, int64_t chunks, uint8_t * five_trit) {
    const int64_t out_chunks = (chunks * fields + 4) / 5;
    for (int64_t in = 0, out = 0; in < chunks; in += 5, out += 4) {
        for (int half = 0; half < 128; half += 64) {
            const uint8_t * p = two_bit + half;
            const __m512i codes[5] = {two_bit_chunk(p, chunks, in), two_bit_chunk(p, chunks, in + 1), two_bit_chunk(p, chunks, in + 2),
                                      two_bit_chunk(p, chunks, in + 3), two_bit_chunk(p, chunks, in + 4)};
            const __m512i packed[4] = {pack_five<0>(codes), pack_five<1>(codes), pack_five<2>(codes), pack_five<3>(codes)};
            for (int64_t i = 0; i < min64(4, out_chunks - out); ++i) {
                _mm512_storeu_si512(five_trit + (out + i) * chunk_bytes + half, packed[i]);
            }
        }
    }
}

}  // namespace

const Kernels avx512vbmi_kernels = {Tier::avx512vbmi,
                                    "avx512vbmi",
                                    quantize_token<Avx512Vnni>,
                                    {matmul_f32<Avx512Vnni>, matmul_i32<Avx512Vnni>},
                                    {quantize_groups<Avx512Vnni>, matmul_grouped<GroupedAvx512Vnni>},
                                    {matmul_f32<FiveTrit512, Layout::five_trit>, matmul_i32<FiveTrit512, Layout::five_trit>},
                                    pack_five_trits_vbmi,
                                    Layout::two_bit};

}  // namespace ternary
