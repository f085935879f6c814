// Grouped weights: sizes, the work buffer, and repacking from the three types of the file. Sources of these: block_q2_0,
// block_tq1_0 and block_tq2_0 in ggml-common.h, dequantize_row_* in ggml-quants.c.

#include "grouped_layout.h"

#include <cstring>

namespace ternary {
namespace {

constexpr int64_t line_bytes = 64;

constexpr int64_t round_up_to_line(int64_t bytes) { return (bytes + line_bytes - 1) / line_bytes * line_bytes; }

// An odd number of cache lines: see buffers.cpp.
constexpr int64_t token_stride(int64_t cols) { return (round_up_to_line(cols) / line_bytes | 1) * line_bytes; }

inline uint32_t word_at(const uint8_t * p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

// Writes one row's word of each chunk of a block: 16 columns, where byte c holds the codes of columns c, c + 4, c + 8, c + 12.
struct RowTarget {
    uint8_t * chunks;
    int64_t row;

    void put(int64_t chunk, uint32_t word) const { memcpy(chunks + chunk * chunk_bytes + row * step_cols, &word, sizeof word); }
};

// 18 bytes: scale; byte b of 16 holds columns 4 b .. 4 b + 3, the first in the low bits.
struct SourceQ2_0 {
    static constexpr int64_t bytes = 18, scale_at = 0;

    static void move(const uint8_t * p, const RowTarget & to) {
        for (int64_t chunk = 0; chunk < 4; ++chunk) {
            // The 16 codes are a square of 4 x 4, 2 bits each: transposed, in two steps.
            uint32_t word = word_at(p + 2 + 4 * chunk);
            uint32_t change = (word ^ word >> 6) & 0x00cc00cc;
            word ^= change ^ change << 6;
            change = (word ^ word >> 12) & 0x0000f0f0;
            to.put(chunk, word ^ change ^ change << 12);
        }
    }
};

// Four neighbouring codes, in bytes, from columns `at`, `at` + 4, `at` + 8 and `at` + 12: a word of a chunk.
template <class CodesAt>
uint32_t word_of(int64_t at, const CodesAt & codes_at) {
    return codes_at(at) | codes_at(at + 4) << 2 | codes_at(at + 8) << 4 | codes_at(at + 12) << 6;
}

// 66 bytes: byte k of 32 holds columns k, k + 32, k + 64, k + 96, the first in the low bits; the same for columns from 128; scale.
struct SourceTQ2_0 {
    static constexpr int64_t bytes = 66, scale_at = 64;

    static void move(const uint8_t * p, const RowTarget & to) {
        for (int64_t chunk = 0; chunk < 16; ++chunk) {
            const int64_t first = chunk * chunk_cols;
            to.put(chunk, word_of(first, [p](int64_t col) {
                       return word_at(p + col / 128 * 32 + col % 32) >> (2 * (col / 32 % 4)) & 0x03030303;
                   }));
        }
    }
};

// 54 bytes: 48 of five codes each, 4 of four codes each, scale. A byte b holds its codes as digits to base 3 of a fraction,
// b / 256; the highest is the first. Bytes 0..31 hold columns k, k + 32, ..., k + 128; bytes 32..47 columns 160 + k, 160 + k + 16,
// ...; the last four columns 240 + k, 240 + k + 4, ...
struct SourceTQ1_0 {
    static constexpr int64_t bytes = 54, scale_at = 52;

    static void move(const uint8_t * p, const RowTarget & to) {
        uint8_t codes[256];
        digits(p, 32, 5, codes);
        digits(p + 32, 16, 5, codes + 160);
        digits(p + 48, 4, 4, codes + 240);
        for (int64_t chunk = 0; chunk < 16; ++chunk) {
            to.put(chunk, word_of(chunk * chunk_cols, [&codes](int64_t col) { return word_at(codes + col); }));
        }
    }

    static void digits(const uint8_t * p, int64_t count, int64_t digits_each, uint8_t * codes) {
        for (int64_t k = 0; k < count; ++k) {
            uint32_t rest = p[k];
            for (int64_t digit = 0; digit < digits_each; ++digit) {
                codes[digit * count + k] = static_cast<uint8_t>(3 * rest >> 8);
                rest = 3 * rest & 0xff;
            }
        }
    }
};

// The exponent of infinity and NaN.
bool finite_half(const uint8_t * p) { return (p[1] & 0x7c) != 0x7c; }

template <class Source>
GroupedRepackResult repack_of(Grouped kind, const uint8_t * source, int64_t rows, int64_t cols, uint8_t * packed,
                              int64_t panel_begin, int64_t panel_end) {
    const int64_t blocks = cols / weight_group(kind);
    GroupedRepackResult result;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        for (int64_t block = 0; block < blocks; ++block) {
            uint8_t * to = packed + panel * grouped_panel_bytes(kind, cols) + block * grouped_block_bytes(kind);
            memset(to, 0, scale_bytes);
            for (int64_t r = 0; r < panel_rows; ++r) {
                const int64_t row = panel * panel_rows + r;
                const RowTarget target{to + scale_bytes, r};
                if (row >= rows) {
                    for (int64_t chunk = 0; chunk < block_chunks(kind); ++chunk) {
                        target.put(chunk, 0x55555555);
                    }
                    continue;
                }
                const uint8_t * from = source + (row * blocks + block) * Source::bytes;
                memcpy(to + 2 * r, from + Source::scale_at, 2);
                Source::move(from, target);
                if (!finite_half(from + Source::scale_at)) {
                    const int64_t element = row * cols + block * weight_group(kind);
                    result.bad_element = result.ok || element < result.bad_element ? element : result.bad_element;
                    result.ok = false;
                }
            }
        }
    }
    return result;
}

}  // namespace

size_t grouped_packed_bytes(Grouped kind, int64_t rows, int64_t cols) {
    return static_cast<size_t>(panel_count(rows) * grouped_panel_bytes(kind, cols));
}

GroupedRepackResult repack_grouped(Grouped kind, const uint8_t * source, int64_t rows, int64_t cols, void * packed,
                                   int64_t panel_begin, int64_t panel_end) {
    auto * target = static_cast<uint8_t *>(packed);
    switch (kind) {
        case Grouped::q2_0: return repack_of<SourceQ2_0>(kind, source, rows, cols, target, panel_begin, panel_end);
        case Grouped::tq1_0: return repack_of<SourceTQ1_0>(kind, source, rows, cols, target, panel_begin, panel_end);
        case Grouped::tq2_0: return repack_of<SourceTQ2_0>(kind, source, rows, cols, target, panel_begin, panel_end);
    }
    return {false, 0};
}

size_t grouped_quantized_bytes(Grouped kind, int64_t cols, int64_t tokens) {
    return static_cast<size_t>(tokens * token_stride(cols) + 2 * round_up_to_line(tokens * (cols / activation_group(kind)) * 4));
}

GroupedBuffer grouped_buffer(Grouped kind, void * buffer, int64_t cols, int64_t tokens) {
    const int64_t groups = cols / activation_group(kind);
    char * base = static_cast<char *>(buffer);
    char * step = base + tokens * token_stride(cols);
    char * sum = step + round_up_to_line(tokens * groups * 4);
    return {reinterpret_cast<int8_t *>(base), token_stride(cols), reinterpret_cast<float *>(step), reinterpret_cast<int32_t *>(sum),
            groups, tokens};
}

}  // namespace ternary
