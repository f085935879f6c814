// I2_S code bytes -> packed panels.
//
// I2_S, in flattened order: block b of 128 elements is 32 bytes; byte j holds the elements j, j + 32, j + 64, j + 96 of
// the block in bits 7-6, 5-4, 3-2, 1-0. Where cols is a multiple of 128 a row is a whole number of blocks and 16 bytes of
// it are columns 16 h .. 16 h + 15 of each of its four quarters: four rows at a time, a 4 x 4 transpose of 32-bit words
// and shifts give the panel's bytes. SSE2, which every x86-64 has, does this at about the memory's speed.
//
// five_trit is made from two_bit, 640 columns at a time: the fewest that are whole blocks of I2_S and whole chunks of both
// layouts. The 5 KiB between the two stay in the first-level cache.

#include "layout.h"

#include <cstring>

#if defined(__SSE2__) && !defined(TERNARY_SCALAR_ONLY)
#include <emmintrin.h>
#define TERNARY_SSE2 1
#endif

namespace ternary {
namespace {

constexpr int64_t block_elements = 128;
constexpr int64_t block_code_bytes = 32;
constexpr uint8_t padding_byte = 0x55;  // four codes 1: trit 0

uint8_t code_at(const uint8_t * codes, int64_t element) {
    const int64_t in_block = element % block_elements;
    const uint8_t byte = codes[element / block_elements * block_code_bytes + in_block % 32];
    return (byte >> (6 - 2 * (in_block / 32))) & 3;
}

int64_t first_code_3(const uint8_t * codes, int64_t begin, int64_t end) {
    for (int64_t element = begin; element < end; ++element) {
        if (code_at(codes, element) == 3) {
            return element;
        }
    }
    return -1;
}

// Part of a panel, before it is packed further: rows [row, row_end) and columns [col, col_end) of the matrix, col a
// multiple of 128, or of chunk_cols where it is all columns.
struct Part {
    int64_t row, row_end, col, col_end;
};

// By the definition, into two_bit chunks; returns true when a code 3 was seen.
bool repack_any(const uint8_t * codes, int64_t cols, const Part & part, uint8_t * chunks) {
    std::memset(chunks, padding_byte, static_cast<size_t>(panel_bytes(part.col_end - part.col)));
    bool bad = false;
    for (int64_t row = part.row; row < part.row_end; ++row) {
        uint8_t * out = chunks + row % panel_rows / 16 * 64 + row % 16 * step_cols;
        for (int64_t col = part.col; col < part.col_end; ++col) {
            const uint8_t code = code_at(codes, row * cols + col);
            const int64_t here = col - part.col;
            const int64_t field = here % chunk_cols / step_cols;
            uint8_t & byte = out[here / chunk_cols * chunk_bytes + here % step_cols];
            byte = static_cast<uint8_t>((byte & ~(3 << (2 * field))) | code << (2 * field));
            bad = bad || code == 3;
        }
    }
    return bad;
}

#if defined(TERNARY_SSE2)
inline __m128i load128(const void * p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }

// Exchanges the high digits of a with the low digits of b, in every byte.
template <int Shift>
void exchange(__m128i & a, __m128i & b, __m128i low_digits) {
    const __m128i difference = _mm_and_si128(_mm_xor_si128(_mm_srli_epi16(a, Shift), b), low_digits);
    b = _mm_xor_si128(b, difference);
    a = _mm_xor_si128(a, _mm_slli_epi16(difference, Shift));
}

// A byte is four digits of two bits. Transposes them: digit i of words[j] becomes digit j of words[i].
void transpose_digits(__m128i (&words)[4]) {
    const __m128i low_two = _mm_set1_epi8(0x0f);
    const __m128i even = _mm_set1_epi8(0x33);
    exchange<4>(words[0], words[2], low_two);
    exchange<4>(words[1], words[3], low_two);
    exchange<2>(words[0], words[1], even);
    exchange<2>(words[2], words[3], even);
}

inline void store128(void * p, __m128i v) { _mm_storeu_si128(static_cast<__m128i *>(p), v); }

inline __m128i pairs(__m128i v) { return _mm_and_si128(v, _mm_srli_epi16(v, 1)); }  // even bits: a code 3

// Four rows of one block, 16 bytes (half 0 or 1) of each: the chunks half, half + 2, half + 4, half + 6 of the block.
void repack_four(const uint8_t * rows, int64_t row_bytes, uint8_t * out, __m128i & seen) {
    const __m128i a = load128(rows);
    const __m128i b = load128(rows + row_bytes);
    const __m128i c = load128(rows + 2 * row_bytes);
    const __m128i d = load128(rows + 3 * row_bytes);
    seen = _mm_or_si128(seen, _mm_or_si128(_mm_or_si128(pairs(a), pairs(b)), _mm_or_si128(pairs(c), pairs(d))));
    const __m128i ab_low = _mm_unpacklo_epi32(a, b);
    const __m128i ab_high = _mm_unpackhi_epi32(a, b);
    const __m128i cd_low = _mm_unpacklo_epi32(c, d);
    const __m128i cd_high = _mm_unpackhi_epi32(c, d);
    __m128i words[4] = {_mm_unpacklo_epi64(ab_low, cd_low), _mm_unpackhi_epi64(ab_low, cd_low),
                        _mm_unpacklo_epi64(ab_high, cd_high), _mm_unpackhi_epi64(ab_high, cd_high)};
    transpose_digits(words);  // from word = field, digit = quarter, the first quarter highest
    store128(out, words[3]);
    store128(out + 2 * chunk_bytes, words[2]);
    store128(out + 4 * chunk_bytes, words[1]);
    store128(out + 6 * chunk_bytes, words[0]);
}

// 32 rows with cols a multiple of 128.
bool repack_sse2(const uint8_t * codes, int64_t cols, const Part & part, uint8_t * chunks) {
    const int64_t row_bytes = cols / 4;
    const uint8_t * rows = codes + part.row * row_bytes + part.col / 4;
    __m128i seen = _mm_setzero_si128();
    for (int64_t block = 0; block < (part.col_end - part.col) / block_elements; ++block) {
        for (int64_t r = 0; r < panel_rows; r += 4) {
            const uint8_t * in = rows + r * row_bytes + block * block_code_bytes;
            uint8_t * out = chunks + block * 8 * chunk_bytes + r * step_cols;
            repack_four(in, row_bytes, out, seen);
            repack_four(in + 16, row_bytes, out + chunk_bytes, seen);
        }
    }
    const __m128i threes = _mm_and_si128(seen, _mm_set1_epi8(0x55));
    return _mm_movemask_epi8(_mm_cmpeq_epi8(threes, _mm_setzero_si128())) != 0xffff;
}
#endif

bool repack_part(const uint8_t * codes, int64_t cols, const Part & part, uint8_t * chunks) {
#if defined(TERNARY_SSE2)
    if (cols % block_elements == 0 && part.row_end - part.row == panel_rows) {
        return repack_sse2(codes, cols, part, chunks);
    }
#endif
    return repack_any(codes, cols, part, chunks);
}

bool repack_panel(const Kernels & kernels, Layout layout, const uint8_t * codes, int64_t row, int64_t row_end, int64_t cols,
                  uint8_t * panel) {
    if (layout == Layout::two_bit) {
        return repack_part(codes, cols, {row, row_end, 0, cols}, panel);
    }
    constexpr int64_t part_cols = 640;
    uint8_t two_bit[panel_bytes(part_cols)];
    uint8_t five_trit[panel_bytes(part_cols, Layout::five_trit)];
    bool bad = false;
    for (int64_t col = 0; col < cols; col += part_cols) {
        const int64_t col_end = col + part_cols < cols ? col + part_cols : cols;
        // A code 3 has no place in five_trit: such a part is left as it is, and the result says so.
        if (repack_part(codes, cols, {row, row_end, col, col_end}, two_bit)) {
            bad = true;
        } else {
            // By way of a buffer: 17 columns are two chunks of 16, which become two of 20, the second all padding.
            kernels.pack_five_trits(two_bit, chunks_of(col_end - col), five_trit);
            std::memcpy(panel + col / five_trit_chunk_cols * chunk_bytes, five_trit,
                        static_cast<size_t>(panel_bytes(col_end - col, layout)));
        }
    }
    return bad;
}

}  // namespace

RepackResult repack_i2_s(const Kernels & kernels, Layout layout, const uint8_t * codes, int64_t rows, int64_t cols, void * packed,
                         int64_t panel_begin, int64_t panel_end) {
    RepackResult result;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        const int64_t row = panel * panel_rows;
        const int64_t row_end = row + panel_rows < rows ? row + panel_rows : rows;
        uint8_t * out = static_cast<uint8_t *>(packed) + panel * panel_bytes(cols, layout);
        if (repack_panel(kernels, layout, codes, row, row_end, cols, out) && result.ok) {
            result.ok = false;
            result.bad_element = first_code_3(codes, row * cols, row_end * cols);
        }
    }
    return result;
}

}  // namespace ternary
