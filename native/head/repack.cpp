// From the rows of a GGUF tensor to panels. Sources of the three formats: block_q4_K, block_q5_K and block_q6_K in
// ggml-common.h, dequantize_row_* in ggml-quants.c.

#include "layout.h"

#include <cstring>

namespace head {
namespace {

// One block of one row, taken apart.
struct Row {
    float d, dmin;
    int8_t scales[16];
    uint8_t mins[16];
    uint8_t codes[block_cols];
};

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

// q4_k and q5_k: 12 bytes hold eight 6-bit scales and eight 6-bit mins; the last four of each are split.
void read_scales(const uint8_t * packed, Row & row) {
    for (int i = 0; i < 4; ++i) {
        row.scales[i] = static_cast<int8_t>(packed[i] & 63);
        row.mins[i] = packed[i + 4] & 63;
        row.scales[i + 4] = static_cast<int8_t>((packed[i + 8] & 15) | packed[i] >> 6 << 4);
        row.mins[i + 4] = static_cast<uint8_t>(packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4);
    }
}

template <class F>
struct Source;

template <>
struct Source<Q4K> {
    static constexpr int64_t bytes = 144;
    static void read(const uint8_t * p, Row & row) {
        row.d = half_to_float(p);
        row.dmin = half_to_float(p + 2);
        read_scales(p + 4, row);
        for (int i = 0; i < 256; ++i) {  // 32 bytes: 32 columns in the low nibbles, the next 32 in the high ones
            row.codes[i] = p[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
        }
    }
};

template <>
struct Source<Q5K> {
    static constexpr int64_t bytes = 176;
    static void read(const uint8_t * p, Row & row) {
        row.d = half_to_float(p);
        row.dmin = half_to_float(p + 2);
        read_scales(p + 4, row);
        for (int i = 0; i < 256; ++i) {  // the fifth bits of columns 32 n + k are bit n of byte k
            const int low = p[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
            row.codes[i] = static_cast<uint8_t>(low | (p[16 + i % 32] >> (i / 32) & 1) << 4);
        }
    }
};

template <>
struct Source<Q6K> {
    static constexpr int64_t bytes = 210;
    static void read(const uint8_t * p, Row & row) {
        row.d = half_to_float(p + 208);
        row.dmin = 0;
        memcpy(row.scales, p + 192, 16);
        for (int i = 0; i < 256; ++i) {  // for each 128 columns 64 bytes of low nibbles and 32 of two high bits
            const int part = i / 128, within = i % 128;
            const int low = p[part * 64 + within % 64] >> (within / 64 * 4) & 15;
            const int high = p[128 + part * 32 + within % 32] >> (within / 32 * 2) & 3;
            row.codes[i] = static_cast<uint8_t>(low | high << 4);
        }
    }
};

template <class F>
void write(const Row & row, uint8_t * half, int64_t lane) {
    memcpy(half + 4 * lane, &row.d, sizeof row.d);
    if constexpr (F::has_mins) {
        memcpy(half + F::dmin_at + 4 * lane, &row.dmin, sizeof row.dmin);
    }
    for (int g = 0; g < F::groups; ++g) {
        half[F::scales_at + g * half_rows + lane] = static_cast<uint8_t>(row.scales[g]);
        if constexpr (F::has_mins) {
            half[F::mins_at + g * half_rows + lane] = row.mins[g];
        }
        uint8_t * group = half + F::groups_at + g * F::group_bytes + 4 * lane;
        const uint8_t * codes = row.codes + g * F::steps * step_cols;
        for (int col = 0; col < step_cols; ++col) {
            unsigned high = 0;
            for (int step = 0; step < F::steps; step += 2) {
                const unsigned even = codes[step * step_cols + col], odd = codes[(step + 1) * step_cols + col];
                group[step / 2 * line + col] = static_cast<uint8_t>((even & 15) | (odd & 15) << 4);
                high |= even >> 4 << (step * F::high_bits) | odd >> 4 << ((step + 1) * F::high_bits);
            }
            if constexpr (F::high_bits > 0) {
                group[F::steps / 2 * line + col] = static_cast<uint8_t>(high);
            }
        }
    }
}

template <class F>
void repack_of(const uint8_t * source, int64_t rows, int64_t cols, uint8_t * packed, int64_t panel_begin, int64_t panel_end) {
    const int64_t blocks = blocks_of(cols);
    static const Row nothing = {};
    Row row;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
        for (int64_t r = 0; r < panel_rows; ++r) {
            const int64_t index = panel * panel_rows + r;
            for (int64_t block = 0; block < blocks; ++block) {
                uint8_t * half = packed + (panel * blocks + block) * F::block_bytes + r / half_rows * F::half_bytes;
                if (index < rows) {
                    Source<F>::read(source + (index * blocks + block) * Source<F>::bytes, row);
                    write<F>(row, half, r % half_rows);
                } else {
                    write<F>(nothing, half, r % half_rows);
                }
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
