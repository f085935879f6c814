// The matrix product: scalar against a loop over trits that the test unpacks itself, every tier and layout against the same loop, exactly.

#include "support.h"

#include <cmath>
#include <cstring>

using namespace ternary;
using namespace ternary_test;

enum class Fill { random, high, low, high_low, low_high, alternating };
static const char * const fill_names[] = {"random", "+1 * 127", "-1 * -128", "+1 * -128", "-1 * 127", "alternating"};

struct Problem {
    int64_t rows, cols, tokens;
    Fill fill;
    std::vector<int8_t> trits;  // [rows][cols]
    std::vector<uint8_t> packed[2];  // by layout
    std::vector<int8_t> q;  // [tokens][stride]
    std::vector<float> scale;
    std::vector<int32_t> sum;
    int64_t stride;

    const uint8_t * weights(Layout layout) const { return packed[static_cast<int>(layout)].data(); }
    QuantizedTokens view() const { return {q.data(), stride, scale.data(), sum.data(), tokens}; }
    std::string name() const {
        return str(rows) + " x " + str(cols) + ", " + str(tokens) + " tokens, " + fill_names[static_cast<int>(fill)];
    }
};

static int8_t trit_of(Fill fill, int64_t i, Random & random) {
    switch (fill) {
        case Fill::random: return static_cast<int8_t>(random.next() % 3) - 1;
        case Fill::high: case Fill::high_low: return 1;
        case Fill::low: case Fill::low_high: return -1;
        case Fill::alternating: return i % 2 ? 1 : -1;
    }
    return 0;
}

static int8_t q_of(Fill fill, int64_t i, Random & random) {
    switch (fill) {
        case Fill::random: return static_cast<int8_t>(random.next());
        case Fill::high: case Fill::low_high: return 127;
        case Fill::low: case Fill::high_low: return -128;
        case Fill::alternating: return i % 2 ? 127 : -128;
    }
    return 0;
}

static Problem make(int64_t rows, int64_t cols, int64_t tokens, Fill fill) {
    Problem p{rows, cols, tokens, fill, {}, {}, {}, {}, {}, padded_cols(cols)};
    Random random(rows * 1000003 + cols * 1009 + tokens);
    p.trits.resize(rows * cols);
    for (int64_t i = 0; i < rows * cols; ++i) {
        p.trits[i] = trit_of(fill, i % cols, random);
    }
    const std::vector<uint8_t> codes = pack_i2_s(p.trits);
    for (const Layout layout : all_layouts) {
        std::vector<uint8_t> & packed = p.packed[static_cast<int>(layout)];
        packed.resize(packed_bytes(layout, rows, cols));
        check(repack_i2_s(scalar(), layout, codes.data(), rows, cols, packed.data(), 0, panel_count(rows)).ok, p.name() + ": repack");
    }
    p.q.assign(tokens * p.stride, 0);
    for (int64_t token = 0; token < tokens; ++token) {
        int32_t sum = 0;
        for (int64_t col = 0; col < cols; ++col) {
            sum += p.q[token * p.stride + col] = q_of(fill, col, random);
        }
        p.sum.push_back(sum);
        p.scale.push_back(0.5f + static_cast<float>(random.next() % 1000));
    }
    return p;
}

static std::vector<int32_t> naive(const Problem & p) {
    std::vector<int32_t> y(p.tokens * p.rows);
    for (int64_t token = 0; token < p.tokens; ++token) {
        for (int64_t row = 0; row < p.rows; ++row) {
            int32_t sum = 0;
            for (int64_t col = 0; col < p.cols; ++col) {
                sum += p.trits[row * p.cols + col] * p.q[token * p.stride + col];
            }
            y[token * p.rows + row] = sum;
        }
    }
    return y;
}

static void compare(const std::vector<int32_t> & y, const std::vector<int32_t> & expected, const Problem & p, const std::string & who) {
    for (size_t i = 0; i < expected.size(); ++i) {
        if (y[i] != expected[i]) {
            check(false, who + ", " + p.name() + ": token " + str(i / p.rows) + " row " + str(i % p.rows) + " is " + str(y[i]) +
                             ", expected " + str(expected[i]));
            return;
        }
    }
}

static std::vector<int32_t> integers(const TierLayout & tier, const Problem & p, int threads) {
    std::vector<int32_t> y(p.tokens * p.rows, 0x5a5a5a5a);
    split(panel_count(p.rows), threads, [&](int64_t begin, int64_t end) {
        tier.products().matmul_i32(p.weights(tier.layout), p.rows, p.cols, p.view(), y.data(), p.rows, begin, end);
    });
    return y;
}

static std::vector<float> floats(const TierLayout & tier, const Problem & p, float weight_scale, int64_t y_stride, int threads) {
    std::vector<float> y(p.tokens * y_stride, -7.0f);
    split(panel_count(p.rows), threads, [&](int64_t begin, int64_t end) {
        tier.products().matmul(p.weights(tier.layout), p.rows, p.cols, weight_scale, p.view(), y.data(), y_stride, begin, end);
    });
    return y;
}

// Integers against the naive loop; floats against the formula; nothing written outside the rows.
static void check_problem(const Problem & p, int threads) {
    const std::vector<int32_t> expected = naive(p);
    const float weight_scale = 0.0371f;
    const int64_t y_stride = p.rows + 3;
    for (const TierLayout & tier : tier_layouts()) {
        const std::string who = tier.name() + " on " + str(threads) + " threads";
        compare(integers(tier, p, threads), expected, p, who);
        const std::vector<float> y = floats(tier, p, weight_scale, y_stride, threads);
        for (int64_t token = 0; token < p.tokens; ++token) {
            for (int64_t row = 0; row < y_stride; ++row) {
                volatile float factor = weight_scale / p.scale[token];
                const float want = row < p.rows ? static_cast<float>(expected[token * p.rows + row]) * factor : -7.0f;
                if (y[token * y_stride + row] != want) {
                    check(false, who + ", " + p.name() + ": float at token " + str(token) + " row " + str(row) + " is " +
                                     std::to_string(y[token * y_stride + row]) + ", expected " + std::to_string(want));
                    return;
                }
            }
        }
    }
}

static void test_shapes() {
    const int64_t shapes[][2] = {{1, 128},  {1, 256}, {17, 128}, {32, 4},   {64, 6},  {128, 1},  {16, 8},    {40, 16},
                                 {31, 384}, {33, 640}, {64, 576}, {96, 1088}, {6, 8640}, {34, 576}, {100, 512}, {7, 1152}};
    const int64_t batches[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 24, 25, 31, 33, 64};
    for (const auto & shape : shapes) {
        if (shape[0] * shape[1] % 128 != 0) {
            check(false, "test shape " + str(shape[0]) + " x " + str(shape[1]) + " is not a multiple of 128");
            continue;
        }
        for (const int64_t tokens : batches) {
            check_problem(make(shape[0], shape[1], tokens, Fill::random), 1);
        }
    }
    for (const int64_t tokens : {100, 191, 192, 193, 385, 600, 1025}) {
        check_problem(make(34, 576, tokens, Fill::random), 1);
        check_problem(make(1, 128, tokens, Fill::random), 1);
    }
    check_problem(make(640, 2560, 1, Fill::random), 2);
    if (!quick()) {
        check_problem(make(640, 2560, 13, Fill::random), 2);
        check_problem(make(96, 6912, 37, Fill::random), 2);
        check_problem(make(17, 8704, 200, Fill::random), 2);
    }
}

static void test_extremes() {
    for (const Fill fill : {Fill::random, Fill::high, Fill::low, Fill::high_low, Fill::low_high, Fill::alternating}) {
        for (const int64_t cols : {128, 512, 4096, 8640, 65536}) {
            for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 8, 12, 13, 20}) {
                if (!quick() || cols <= 8640 || tokens == 1 || tokens == 13) {
                    check_problem(make(cols == 8640 ? 2 : 3, cols, tokens, fill), 1);
                }
            }
        }
    }
}

static void test_threads() {
    for (int threads = 1; threads <= 8; ++threads) {
        for (const int64_t tokens : {1, 5, 30}) {
            check_problem(make(250, 256, tokens, Fill::random), threads);
            check_problem(make(32, 128, tokens, Fill::random), threads);  // fewer panels than threads
        }
    }
}

// The same token gives the same bits whatever batch it comes in.
static void test_batch_independence() {
    const Problem p = make(70, 640, 40, Fill::random);
    for (const TierLayout & tier : tier_layouts()) {
        const std::vector<float> together = floats(tier, p, 0.7f, p.rows, 1);
        for (int64_t first = 0; first < p.tokens; first += 9) {
            for (int64_t count = 1; first + count <= p.tokens; count += 3) {
                Problem part = p;
                part.tokens = count;
                part.q.erase(part.q.begin(), part.q.begin() + first * p.stride);
                part.scale.erase(part.scale.begin(), part.scale.begin() + first);
                part.sum.erase(part.sum.begin(), part.sum.begin() + first);
                const std::vector<float> alone = floats(tier, part, 0.7f, p.rows, 1);
                check(std::memcmp(alone.data(), together.data() + first * p.rows, alone.size() * sizeof(float)) == 0,
                      tier.name() + ": tokens " + str(first) + " to " + str(first + count) + " alone and together");
            }
        }
    }
}

static void test_not_finite() {
    const int64_t rows = 40, cols = 256;
    const Problem p = make(rows, cols, 1, Fill::random);
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
        for (const int64_t tokens : {3, 15}) {
            std::vector<float> x(tokens * cols, 0.25f);
            x[cols + 100] = bad;  // token 1
            for (const TierLayout & tier : tier_layouts()) {
                std::vector<uint8_t> memory(quantized_bytes(cols, tokens));
                const QuantizedBuffer buffer = quantized_buffer(memory.data(), cols, tokens);
                quantize(*tier.kernels, x.data(), cols, cols, buffer, 0, tokens);
                std::vector<float> y(tokens * rows);
                tier.products().matmul(p.weights(tier.layout), rows, cols, 2.0f, buffer, y.data(), rows, 0, panel_count(rows));
                for (int64_t i = 0; i < tokens * rows; ++i) {
                    check(std::isnan(y[i]) == (i / rows == 1), tier.name() + ": NaN in token 1 alone, not in " + str(i / rows));
                }
            }
        }
    }
}

static void test_empty() {
    const Problem p = make(40, 128, 2, Fill::random);
    for (const TierLayout & tier : tier_layouts()) {
        std::vector<int32_t> y(80, 5);
        tier.products().matmul_i32(p.weights(tier.layout), 40, 128, p.view(), y.data(), 40, 1, 1);
        QuantizedTokens none = p.view();
        none.tokens = 0;
        tier.products().matmul_i32(p.weights(tier.layout), 40, 128, none, y.data(), 40, 0, 2);
        check(y == std::vector<int32_t>(80, 5), tier.name() + ": no panels or no tokens, no writes");
    }
}

int main() {
    test_shapes();
    test_extremes();
    test_threads();
    test_batch_independence();
    test_not_finite();
    test_empty();
    return finish("matmul");
}
