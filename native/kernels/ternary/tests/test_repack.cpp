// Repacking: bytes written by hand, every shape read back through the scalar kernel, padding, splits and code 3.

#include "support.h"

#include <cstring>

using namespace ternary;
using namespace ternary_test;

static std::vector<uint8_t> repack(const TierLayout & tier, const std::vector<uint8_t> & codes, int64_t rows, int64_t cols) {
    std::vector<uint8_t> packed(packed_bytes(tier.layout, rows, cols), 0xee);
    const RepackResult result = repack_i2_s(*tier.kernels, tier.layout, codes.data(), rows, cols, packed.data(), 0, panel_count(rows));
    check(result.ok, tier.name() + ": repack " + str(rows) + " x " + str(cols) + " finds no code 3");
    return packed;
}

// Column by column, with one-hot activations: exactly the weight at (row, col), and nothing from the padding.
static std::vector<int32_t> read_back(Layout layout, const std::vector<uint8_t> & packed, int64_t rows, int64_t cols, int64_t col) {
    std::vector<int8_t> q(padded_cols(cols), 0);
    q[col] = 1;
    const float scale = 1.0f;
    const int32_t sum = 1;
    std::vector<int32_t> y(rows, -99);
    scalar().products(layout).matmul_i32(packed.data(), rows, cols, {q.data(), padded_cols(cols), &scale, &sum, 1}, y.data(), rows, 0,
                        panel_count(rows));
    return y;
}

static void test_bytes_by_hand(const TierLayout & tier) {
    // One block, 4 rows x 32 columns: byte 0 = 0b10'01'00'10 holds elements 0, 32, 64, 96: +1, 0, -1, +1.
    std::vector<uint8_t> codes(32, 0x55);
    codes[0] = 0x92;
    codes[31] = 0x18;  // elements 31, 63, 95, 127: -1, 0, +1, -1
    const std::vector<uint8_t> packed = repack(tier, codes, 4, 32);
    check(read_back(tier.layout, packed, 4, 32, 0) == std::vector<int32_t>({1, 0, -1, 1}), "column 0 by hand");
    check(read_back(tier.layout, packed, 4, 32, 31) == std::vector<int32_t>({-1, 0, 1, -1}), "column 31 by hand");
    check(read_back(tier.layout, packed, 4, 32, 5) == std::vector<int32_t>({0, 0, 0, 0}), "column 5 by hand");
    check(unpack_i2_s(codes)[96] == 1 && unpack_i2_s(codes)[127] == -1, "the test's own unpacker by hand");
}

static void test_shapes(const TierLayout & tier) {
    const int64_t shapes[][2] = {{1, 128},  {1, 640},  {17, 128}, {32, 4},   {128, 1},  {64, 2},   {128, 3}, {31, 256},
                                 {33, 256}, {64, 576}, {10, 576}, {96, 128}, {40, 384}, {2, 8640}, {130, 192}, {128, 17}, {33, 1408}, {32, 1280}};
    for (const auto & shape : shapes) {
        const int64_t rows = shape[0];
        const int64_t cols = shape[1];
        const std::vector<int8_t> trits = random_trits(rows * cols, rows * 7919 + cols);
        const std::vector<uint8_t> codes = pack_i2_s(trits);
        check(unpack_i2_s(codes) == trits, "the test's packer and unpacker agree");
        const std::vector<uint8_t> packed = repack(tier, codes, rows, cols);
        if (tier.kernels != &scalar()) {
            check(packed == repack({&scalar(), tier.layout}, codes, rows, cols), tier.name() + ": the bytes that scalar packs");
            continue;
        }
        const int64_t step = quick() && cols > 2000 ? 7 : 1;
        for (int64_t col = 0; col < cols; col += step) {
            const std::vector<int32_t> y = read_back(tier.layout, packed, rows, cols, col);
            for (int64_t row = 0; row < rows; ++row) {
                check(y[row] == trits[row * cols + col],
                      "weight (" + str(row) + ", " + str(col) + ") of " + str(rows) + " x " + str(cols));
            }
        }
    }
}

static void test_splits(const TierLayout & tier) {
    for (const int64_t cols : {256, 576}) {
        const int64_t rows = 200;  // 7 panels, the last one incomplete
        const std::vector<uint8_t> codes = pack_i2_s(random_trits(rows * cols, 3));
        const std::vector<uint8_t> whole = repack(tier, codes, rows, cols);
        for (int threads = 1; threads <= 8; ++threads) {
            std::vector<uint8_t> parts(whole.size() + 64, 0xcd);
            split(panel_count(rows), threads, [&](int64_t begin, int64_t end) {
                repack_i2_s(*tier.kernels, tier.layout, codes.data(), rows, cols, parts.data(), begin, end);
            });
            check(std::memcmp(parts.data(), whole.data(), whole.size()) == 0, "repack with " + str(threads) + " threads");
            check(parts[whole.size()] == 0xcd, "repack writes nothing behind packed_bytes");
        }
    }
}

static void test_code_3(const TierLayout & tier) {
    const int64_t shapes[][2] = {{64, 256}, {64, 576}, {40, 128}};
    for (const auto & shape : shapes) {
        const int64_t rows = shape[0];
        const int64_t cols = shape[1];
        const std::vector<uint8_t> good = pack_i2_s(random_trits(rows * cols, 4));
        std::vector<uint8_t> packed(packed_bytes(tier.layout, rows, cols));
        const int64_t elements[] = {0, 1, 31, 32, 127, cols - 1, cols, 31 * cols + 5, 32 * cols, rows * cols / 2 + 77, rows * cols - 1};
        for (const int64_t e : elements) {
            std::vector<uint8_t> codes = good;
            codes[e / 128 * 32 + e % 32] |= static_cast<uint8_t>(3 << (6 - 2 * (e % 128 / 32)));
            const RepackResult all = repack_i2_s(*tier.kernels, tier.layout, codes.data(), rows, cols, packed.data(), 0, panel_count(rows));
            const std::string what = "code 3 at element " + str(e) + " of " + str(rows) + " x " + str(cols);
            check(!all.ok && all.bad_element == e, what + ": found at " + str(all.bad_element));
            const int64_t panel = e / cols / panel_rows;
            for (int64_t p = 0; p < panel_count(rows); ++p) {
                const RepackResult one = repack_i2_s(*tier.kernels, tier.layout, codes.data(), rows, cols, packed.data(), p, p + 1);
                check(one.ok == (p != panel), what + ": seen by its own panel only, not " + str(p));
            }
        }
    }
}

// Any address and size may be given, and what is there already stays.
static void test_large_pages() {
    std::vector<uint8_t> memory(5 << 20, 0x5a);
    for (const size_t offset : {0, 1, 4096}) {
        prefer_large_pages(memory.data() + offset, memory.size() - offset);
        prefer_large_pages(memory.data() + offset, 100);
        prefer_large_pages(memory.data() + offset, 0);
    }
    check(memory == std::vector<uint8_t>(5 << 20, 0x5a), "prefer_large_pages keeps the contents");
}

// Bytes worked out by hand from the definition in layout.h; then every tier that packs five trits against scalar.
static void test_five_trits() {
    std::vector<uint8_t> two_bit(2 * 128, 0x55);  // two chunks: 32 columns, of which the first 20 make the first chunk
    for (int i = 0; i < 128; ++i) {
        two_bit[i] = static_cast<uint8_t>(i % 3 | i / 3 % 3 << 2 | i / 9 % 3 << 4 | i / 27 % 3 << 6);
        two_bit[128 + i] = static_cast<uint8_t>(0x54 | i / 81 % 3);
    }
    std::vector<uint8_t> expected(2 * 128);
    scalar().pack_five_trits(two_bit.data(), 2, expected.data());
    // -1 -1 -1 -1 -1: n = 0. 0 0 0 0 -1: n = 40, its own negative. +1 +1 +1 +1 -1: n = 80 pairs with 0.
    check(expected[0] == 0 && expected[40] == 20 && expected[80] == 128, "five trits by hand");
    check(expected[81] == 21 && expected[121] == 20 + 21, "five trits by hand, the fifth 0");
    check(expected[41] == 128 + 64 + 19 && expected[127] == 128 + 17 + 21, "five trits by hand, the negative of a class");
    check(expected[128 + 3] == 20 + 21, "columns of padding hold trit 0");
    for (const Kernels * kernels : tiers()) {
        if (kernels->pack_five_trits == nullptr) {
            continue;
        }
        for (const int64_t chunks : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 40}) {
            Random random(chunks);
            std::vector<uint8_t> in(chunks * 128);
            for (uint8_t & byte : in) {
                byte = 0;
                for (int field = 0; field < 4; ++field) {
                    byte = static_cast<uint8_t>(byte << 2 | random.next() % 3);
                }
            }
            const size_t bytes = static_cast<size_t>((chunks * 4 + 4) / 5 * 128);
            std::vector<uint8_t> want(bytes + 64, 0xcd), got(bytes + 64, 0xcd);
            scalar().pack_five_trits(in.data(), chunks, want.data());
            kernels->pack_five_trits(in.data(), chunks, got.data());
            check(want == got, std::string(kernels->name) + ": five trits of " + str(chunks) + " chunks as scalar packs them");
        }
    }
}

int main() {
    test_large_pages();
    test_five_trits();
    for (const TierLayout & tier : tier_layouts()) {
        test_bytes_by_hand(tier);
        test_shapes(tier);
        test_splits(tier);
        test_code_3(tier);
    }
    return finish("repack");
}
