// From the rows of a GGUF tensor to panels. Sources of the three formats: block_q4_K, block_q5_K and block_q6_K in
// ggml-common.h, dequantize_row_* in ggml-quants.c.

#include "layout.h"

#include <cstring>

namespace head {
namespace {

float half_to_float(const uint8_t * p) {
    const uint32_t h = p[0] | static_cast<uint32_t>(p[1]) << 8;
    const uint32_t sign = h >> 15 << 31, exponent = h >> 10 & 31, mantissa = h & 1023;
    float value;
    if (exponent == 0) {
        value = static_cast<float>(mantissa) * 0x1p-24f;
        return sign != 0 ? -value : value;
    }
    const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t word_at(const uint8_t * p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

inline void put_float(uint8_t * p, float value) { memcpy(p, &value, sizeof value); }
inline void put_word(uint8_t * p, uint32_t word) { memcpy(p, &word, sizeof word); }

// Where one row's part of a block goes: 4 bytes of every line of its half.
template <class F>
struct Target {
    uint8_t * half;
    int64_t lane;

    void d(float value) const { put_float(half + 4 * lane, value); }
    void dmin(float value) const { put_float(half + F::dmin_at + 4 * lane, value); }
    void scale(int group, uint8_t value) const { half[F::scales_at + group * half_rows + lane] = value; }
    void min(int group, uint8_t value) const { half[F::mins_at + group * half_rows + lane] = value; }

    void word(int group, int at_line, uint32_t value) const {
        put_word(half + F::groups_at + group * F::group_bytes + at_line * line + 4 * lane, value);
    }
};

// q4_k and q5_k: 32 bytes hold two sub-blocks, the first in the low nibbles. A word is a step.
template <class F>
void move_nibbles(const uint8_t * source, int group, const Target<F> & target) {
    constexpr uint32_t low = 0x0f0f0f0f;
    for (int pair = 0; pair < 4; ++pair) {
        const uint32_t even = word_at(source + 8 * pair), odd = word_at(source + 8 * pair + 4);
        target.word(group, pair, (even & low) | (odd & low) << 4);
        target.word(group + 1, pair, (even >> 4 & low) | (odd & ~low));
    }
}

// q4_k and q5_k: 12 bytes hold eight 6-bit scales and eight 6-bit mins; the last four of each are split.
template <class F>
void move_scales(const uint8_t * packed, const Target<F> & target) {
    for (int i = 0; i < 4; ++i) {
        target.scale(i, packed[i] & 63);
        target.min(i, packed[i + 4] & 63);
        target.scale(i + 4, static_cast<uint8_t>((packed[i + 8] & 15) | packed[i] >> 6 << 4));
        target.min(i + 4, static_cast<uint8_t>(packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4));
    }
}

template <class F>
struct Source;

template <>
struct Source<Q4K> {
    static constexpr int64_t bytes = 144;
    static void move(const uint8_t * p, const Target<Q4K> & target) {
        target.d(half_to_float(p));
        target.dmin(half_to_float(p + 2));
        move_scales(p + 4, target);
        for (int part = 0; part < 4; ++part) {
            move_nibbles(p + 16 + part * 32, 2 * part, target);
        }
    }
};

template <>
struct Source<Q5K> {
    static constexpr int64_t bytes = 176;
    static void move(const uint8_t * p, const Target<Q5K> & target) {
        target.d(half_to_float(p));
        target.dmin(half_to_float(p + 2));
        move_scales(p + 4, target);
        for (int part = 0; part < 4; ++part) {
            move_nibbles(p + 48 + part * 32, 2 * part, target);
        }
        for (int group = 0; group < 8; ++group) {  // the fifth bits of columns 32 group + k are bit `group` of byte k
            uint32_t high = 0;
            for (int step = 0; step < 8; ++step) {
                high |= (word_at(p + 16 + 4 * step) >> group & 0x01010101) << step;
            }
            target.word(group, 4, high);
        }
    }
};

template <>
struct Source<Q6K> {
    static constexpr int64_t bytes = 210;
    static void move(const uint8_t * p, const Target<Q6K> & target) {
        target.d(half_to_float(p + 208));
        for (int group = 0; group < 16; ++group) {
            target.scale(group, p[192 + group]);
        }
        for (int group = 0; group < 16; ++group) {
            // Of 128 columns, 32 n + k have their low nibbles in byte 32 (n % 2) + k of 64, low ones first, and their two
            // high bits in byte k of 32, bits 2 n.
            const int part = group / 8, n = group % 8 / 2, k = group % 2 * 16;
            const uint8_t * low = p + part * 64 + n % 2 * 32 + k;
            const uint8_t * high = p + 128 + part * 32 + k;
            uint32_t codes[4];
            for (int step = 0; step < 4; ++step) {
                codes[step] = (word_at(low + 4 * step) >> (n / 2 * 4) & 0x0f0f0f0f) |
                              (word_at(high + 4 * step) >> (2 * n) & 0x03030303) << 4;
            }
            for (int step = 0; step < 3; ++step) {
                target.word(group, step, codes[step] | (codes[3] >> (2 * step) & 0x03030303) << 6);
            }
        }
    }
};

template <class F>
void repack_of(const uint8_t * source, int64_t rows, int64_t cols, uint8_t * packed, int64_t panel_begin, int64_t panel_end) {
    static const uint8_t nothing[Source<F>::bytes] = {};
    const int64_t blocks = blocks_of(cols);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        for (int64_t block = 0; block < blocks; ++block) {
            uint8_t * to = packed + (panel * blocks + block) * F::block_bytes;
            for (int64_t r = 0; r < panel_rows; ++r) {
                const int64_t row = panel * panel_rows + r;
                const uint8_t * from = row < rows ? source + (row * blocks + block) * Source<F>::bytes : nothing;
                Source<F>::move(from, Target<F>{to + r / half_rows * F::half_bytes, r % half_rows});
            }
        }
    }
}

}  // namespace

int64_t panel_count(int64_t rows) { return (rows + panel_rows - 1) / panel_rows; }

size_t row_bytes(Type type, int64_t cols) {
    const int64_t bytes = type == Type::q4_k   ? Source<Q4K>::bytes
                          : type == Type::q5_k ? Source<Q5K>::bytes
                                               : Source<Q6K>::bytes;
    return static_cast<size_t>(blocks_of(cols) * bytes);
}

size_t packed_bytes(Type type, int64_t rows, int64_t cols) {
    const int64_t bytes = type == Type::q4_k ? Q4K::block_bytes : type == Type::q5_k ? Q5K::block_bytes : Q6K::block_bytes;
    return static_cast<size_t>(panel_count(rows) * blocks_of(cols) * bytes);
}

void repack(Type type, const uint8_t * source, int64_t rows, int64_t cols, void * packed, int64_t panel_begin,
            int64_t panel_end) {
    auto * target = static_cast<uint8_t *>(packed);
    switch (type) {
        case Type::q4_k: return repack_of<Q4K>(source, rows, cols, target, panel_begin, panel_end);
        case Type::q5_k: return repack_of<Q5K>(source, rows, cols, target, panel_begin, panel_end);
        case Type::q6_k: return repack_of<Q6K>(source, rows, cols, target, panel_begin, panel_end);
    }
}

}  // namespace head
