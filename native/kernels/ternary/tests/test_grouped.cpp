// Weights with a scale for every group: every kind and tier against slow code from the definitions in grouped.h and of ggml's
// three types.

#include "support.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

using namespace ternary;
using namespace ternary_test;

static const char * name_of(Grouped kind) {
    return kind == Grouped::q2_0 ? "q2_0" : kind == Grouped::tq1_0 ? "tq1_0" : "tq2_0";
}

static int most_code(Grouped kind) { return kind == Grouped::tq1_0 ? 2 : 3; }

// ------------------------------------------------------------------------------------------- the file's types

static double half_value(uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return half >> 15 ? -size : size;
}

static void put_half(std::vector<uint8_t> & bytes, uint16_t half) {
    bytes.push_back(static_cast<uint8_t>(half));
    bytes.push_back(static_cast<uint8_t>(half >> 8));
}

// `count` bytes of `each` codes, `count` columns apart, as digits to base 3; rounded up, so that multiplying by 3 gives them.
static void put_digits(std::vector<uint8_t> & bytes, const uint8_t * codes, int count, int each) {
    for (int k = 0; k < count; ++k) {
        int n = 0;
        for (int digit = 0; digit < 5; ++digit) {
            n = 3 * n + (digit < each ? codes[digit * count + k] : 0);
        }
        bytes.push_back(static_cast<uint8_t>((n * 256 + 242) / 243));
    }
}

static void put_block(std::vector<uint8_t> & bytes, Grouped kind, const uint8_t * codes, uint16_t scale) {
    switch (kind) {
        case Grouped::q2_0:
            put_half(bytes, scale);
            for (int i = 0; i < 64; i += 4) {
                bytes.push_back(static_cast<uint8_t>(codes[i] | codes[i + 1] << 2 | codes[i + 2] << 4 | codes[i + 3] << 6));
            }
            break;
        case Grouped::tq1_0:
            put_digits(bytes, codes, 32, 5);
            put_digits(bytes, codes + 160, 16, 5);
            put_digits(bytes, codes + 240, 4, 4);
            put_half(bytes, scale);
            break;
        case Grouped::tq2_0:
            for (int part = 0; part < 256; part += 128) {
                for (int k = 0; k < 32; ++k) {
                    const uint8_t * c = codes + part + k;
                    bytes.push_back(static_cast<uint8_t>(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6));
                }
            }
            put_half(bytes, scale);
            break;
    }
}

// ------------------------------------------------------------------------------------------- problems

enum class Fill { random, most_high, most_low, least_high, least_low, alternating };

static uint8_t code_of(Fill fill, Grouped kind, int64_t col, Random & random) {
    switch (fill) {
        case Fill::random: return static_cast<uint8_t>(random.next() % (most_code(kind) + 1));
        case Fill::most_high:
        case Fill::most_low: return static_cast<uint8_t>(most_code(kind));
        case Fill::least_high:
        case Fill::least_low: return 0;
        case Fill::alternating: return static_cast<uint8_t>(col % 2 ? most_code(kind) : 0);
    }
    return 0;
}

static int8_t q_of(Fill fill, int64_t col, Random & random) {
    switch (fill) {
        case Fill::random: return static_cast<int8_t>(random.next());
        case Fill::most_high:
        case Fill::least_high: return 127;
        case Fill::most_low:
        case Fill::least_low: return -128;
        case Fill::alternating: return col % 2 ? -128 : 127;
    }
    return 0;
}

struct Problem {
    Grouped kind;
    int64_t rows, cols, tokens;
    std::vector<uint8_t> codes;    // [rows][cols]
    std::vector<uint16_t> scales;  // float16 [rows][cols / weight_group]
    std::vector<uint8_t> source, packed;
    std::vector<int8_t> q;
    std::vector<float> step;
    std::vector<int32_t> minus_sum;
    int64_t stride, groups;

    GroupedTokens view() const { return {q.data(), stride, step.data(), minus_sum.data(), groups, tokens}; }
    std::string name() const { return std::string(name_of(kind)) + " " + str(rows) + " x " + str(cols) + ", " + str(tokens) + " tokens"; }
};

static std::vector<uint8_t> repack(const Problem & p) {
    std::vector<uint8_t> packed(grouped_packed_bytes(p.kind, p.rows, p.cols), 0xee);
    check(repack_grouped(p.kind, p.source.data(), p.rows, p.cols, packed.data(), 0, panel_count(p.rows)).ok, p.name() + ": repack");
    return packed;
}

static Problem make(Grouped kind, int64_t rows, int64_t cols, int64_t tokens, Fill fill) {
    Problem p{kind, rows, cols, tokens, {}, {}, {}, {}, {}, {}, {}, cols + 64, cols / activation_group(kind)};
    Random random(rows * 1000003 + cols * 1009 + tokens);
    for (int64_t i = 0; i < rows * cols; ++i) {
        p.codes.push_back(code_of(fill, kind, i % cols, random));
    }
    for (int64_t i = 0; i < rows * cols; i += weight_group(kind)) {
        const uint32_t choice = random.next() % 16;  // zeros, a denormal, negative ones, the largest
        const uint16_t half = static_cast<uint16_t>(random.next() % 0x7c00);
        p.scales.push_back(choice == 0 ? 0 : choice == 1 ? 0x0123 : choice == 2 ? half | 0x8000 : choice == 3 ? 0x7bff : half);
        put_block(p.source, kind, p.codes.data() + i, p.scales.back());
    }
    p.packed = repack(p);
    p.q.assign(tokens * p.stride, 99);
    const int64_t group = activation_group(kind);
    for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t g = 0; g < p.groups; ++g) {
            int32_t sum = 0;
            for (int64_t col = g * group; col < (g + 1) * group; ++col) {
                sum += p.q[token * p.stride + col] = q_of(fill, col, random);
            }
            p.minus_sum.push_back(-sum);
            p.step.push_back(random.next() % 8 == 0 ? 0.0f : random.uniform() * 0.01f);
        }
    }
    return p;
}

static std::vector<float> naive(const Problem & p) {
    std::vector<float> y(p.tokens * p.rows);
    const int64_t group = activation_group(p.kind), weights = weight_group(p.kind);
    for (int64_t token = 0; token < p.tokens; ++token) {
        for (int64_t row = 0; row < p.rows; ++row) {
            volatile float total = 0.0f;
            for (int64_t g = 0; g < p.groups; ++g) {
                int32_t sum = 0;
                for (int64_t col = g * group; col < (g + 1) * group; ++col) {
                    sum += (p.codes[row * p.cols + col] - 1) * p.q[token * p.stride + col];
                }
                const float scale = static_cast<float>(half_value(p.scales[(row * p.cols + g * group) / weights]));
                volatile float factor = scale * p.step[token * p.groups + g];
                volatile float product = static_cast<float>(sum) * factor;
                total = total + product;
            }
            y[token * p.rows + row] = total;
        }
    }
    return y;
}

static bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// Every tier against the naive loop, to the bit; nothing written outside the rows.
static void check_problem(const Problem & p, int threads) {
    const std::vector<float> expected = naive(p);
    const int64_t y_stride = p.rows + 3;
    for (const Kernels * kernels : tiers()) {
        std::vector<float> y(p.tokens * y_stride, -7.0f);
        split(panel_count(p.rows), threads, [&](int64_t begin, int64_t end) {
            kernels->grouped.matmul(p.kind, p.packed.data(), p.rows, p.cols, p.view(), y.data(), y_stride, begin, end);
        });
        for (int64_t i = 0; i < p.tokens * y_stride; ++i) {
            const int64_t token = i / y_stride, row = i % y_stride;
            const float want = row < p.rows ? expected[token * p.rows + row] : -7.0f;
            if (!same_bits(y[i], want)) {
                check(false, std::string(kernels->name) + " on " + str(threads) + " threads, " + p.name() + ": token " + str(token) + " row " +
                                 str(row) + " is " + std::to_string(y[i]) + ", expected " + std::to_string(want));
                break;
            }
        }
    }
}

static std::vector<int64_t> widths(Grouped kind) {
    return kind == Grouped::q2_0 ? std::vector<int64_t>{64, 128, 192, 256, 576, 1024} : std::vector<int64_t>{256, 512, 768, 2560};
}

static void test_shapes(Grouped kind) {
    for (const int64_t cols : widths(kind)) {
        for (const int64_t rows : {1, 17, 31, 32, 33, 70}) {
            for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 25}) {
                if (!quick() || rows == 33 || tokens < 3) {
                    check_problem(make(kind, rows, cols, tokens, Fill::random), 1);
                }
            }
        }
    }
    for (const int64_t tokens : {191, 192, 193, 385}) {
        check_problem(make(kind, 3, 256, tokens, Fill::random), 1);
    }
    check_problem(make(kind, 1, 65536 + 256, 2, Fill::random), 1);  // wider than max_cols
}

static void test_extremes(Grouped kind) {
    for (const Fill fill : {Fill::most_high, Fill::most_low, Fill::least_high, Fill::least_low, Fill::alternating}) {
        for (const int64_t cols : {256, 1024, 8704}) {
            for (const int64_t tokens : {1, 2, 3, 4, 5, 6, 8, 12, 13, 20}) {
                check_problem(make(kind, 3, cols, tokens, fill), 1);
            }
        }
    }
}

static void test_threads(Grouped kind) {
    for (int threads = 1; threads <= 8; ++threads) {
        check_problem(make(kind, 250, 256, 5, Fill::random), threads);
    }
}

// The same token gives the same bits whatever batch it comes in.
static void test_batch_independence(Grouped kind) {
    const Problem p = make(kind, 40, 512, 30, Fill::random);
    for (const Kernels * kernels : tiers()) {
        std::vector<float> together(p.tokens * p.rows);
        kernels->grouped.matmul(kind, p.packed.data(), p.rows, p.cols, p.view(), together.data(), p.rows, 0, 2);
        for (int64_t first = 0; first < p.tokens; first += 7) {
            for (int64_t count = 1; first + count <= p.tokens; count += 3) {
                GroupedTokens part = p.view();
                part.q += first * p.stride;
                part.step += first * p.groups;
                part.minus_sum += first * p.groups;
                part.tokens = count;
                std::vector<float> alone(count * p.rows);
                kernels->grouped.matmul(kind, p.packed.data(), p.rows, p.cols, part, alone.data(), p.rows, 0, 2);
                check(std::memcmp(alone.data(), together.data() + first * p.rows, alone.size() * sizeof(float)) == 0,
                      std::string(kernels->name) + " " + name_of(kind) + ": tokens " + str(first) + " to " + str(first + count) + " alone and together");
            }
        }
    }
}

// ------------------------------------------------------------------------------------------- repacking

static void test_repack(Grouped kind) {
    const Problem p = make(kind, 200, 512, 1, Fill::random);  // 7 panels, the last one incomplete
    for (int threads = 2; threads <= 8; threads += 3) {
        std::vector<uint8_t> parts(p.packed.size() + 64, 0xcd);
        split(panel_count(p.rows), threads, [&](int64_t begin, int64_t end) {
            repack_grouped(kind, p.source.data(), p.rows, p.cols, parts.data(), begin, end);
        });
        check(std::memcmp(parts.data(), p.packed.data(), p.packed.size()) == 0, p.name() + ": repack with " + str(threads) + " threads");
        check(parts[p.packed.size()] == 0xcd, p.name() + ": repack writes nothing behind its bytes");
    }
}

static void test_scales_that_are_not_finite(Grouped kind) {
    const int64_t rows = 70, cols = 512, group = weight_group(kind);
    for (const uint16_t bad : {0x7c00, 0xfc00, 0x7e00, 0xffff}) {
        for (const int64_t element : {static_cast<int64_t>(0), cols - group, 40 * cols, 69 * cols + group}) {
            Problem p = make(kind, rows, cols, 1, Fill::random);
            p.scales[element / group] = bad;
            p.source.clear();
            for (int64_t i = 0; i < rows * cols; i += group) {
                put_block(p.source, kind, p.codes.data() + i, p.scales[i / group]);
            }
            const GroupedRepackResult all = repack_grouped(kind, p.source.data(), rows, cols, p.packed.data(), 0, panel_count(rows));
            check(!all.ok && all.bad_element == element, std::string(name_of(kind)) + ": scale at " + str(element) + " found at " + str(all.bad_element));
            const int64_t other = element / cols / panel_rows == 0 ? 1 : 0;
            check(repack_grouped(kind, p.source.data(), rows, cols, p.packed.data(), other, other + 1).ok, "only in its own panel");
        }
    }
}

// Each of the 256 values of a byte of tq1_0 has five digits of 0..2, canonical or not: ggml's own arithmetic.
static void test_bytes_of_tq1_0() {
    std::vector<uint8_t> source;
    for (int block = 0; block < 8; ++block) {
        for (int k = 0; k < 52; ++k) {
            source.push_back(static_cast<uint8_t>(block * 32 + k % 32 + (k < 32 ? 0 : 7 * k)));
        }
        put_half(source, 0x3c00);
    }
    const int64_t cols = 8 * 256;
    std::vector<uint8_t> packed(grouped_packed_bytes(Grouped::tq1_0, 1, cols));
    check(repack_grouped(Grouped::tq1_0, source.data(), 1, cols, packed.data(), 0, 1).ok, "bytes of tq1_0");
    for (int64_t col = 0; col < cols; ++col) {
        const int at = static_cast<int>(col % 256);
        const uint8_t * p = source.data() + col / 256 * 54;
        const int byte = at < 160 ? at % 32 : at < 240 ? 32 + at % 16 : 48 + at % 4;
        const int digit = at < 160 ? at / 32 : at < 240 ? (at - 160) / 16 : (at - 240) / 4;
        int rest = p[byte];
        for (int i = 0; i < digit; ++i) {
            rest = rest * 3 % 256;
        }
        std::vector<int8_t> q(cols, 0);
        q[col] = 1;
        std::vector<float> step(8, 1.0f);
        std::vector<int32_t> minus_sum(8, 0);
        minus_sum[col / 256] = -1;
        float y = -9;
        scalar().grouped.matmul(Grouped::tq1_0, packed.data(), 1, cols, {q.data(), cols, step.data(), minus_sum.data(), 8, 1}, &y, 1, 0, 1);
        check(y == static_cast<float>(rest * 3 / 256 - 1), "byte " + str(p[byte]) + " of tq1_0, digit " + str(digit) + " is " + std::to_string(y));
    }
}

// ------------------------------------------------------------------------------------------- activations

static float nearest_half(float x) {
    if (x >= 65520.0f) {
        return std::numeric_limits<float>::infinity();
    }
    int exponent = 0;
    std::frexp(x, &exponent);
    const int digits = std::max(exponent - 11, -24);
    return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), -digits)), digits));
}

static void compare_quantized(Grouped kind, const std::vector<float> & x, const std::string & what) {
    const int64_t cols = static_cast<int64_t>(x.size()), group = activation_group(kind);
    for (const Kernels * kernels : tiers()) {
        std::vector<uint8_t> memory(grouped_quantized_bytes(kind, cols, 1) + 8, 0xab);
        const GroupedBuffer buffer = grouped_buffer(kind, memory.data(), cols, 1);
        kernels->grouped.quantize_token(kind, x.data(), cols, buffer.q, buffer.step, buffer.minus_sum);
        for (int64_t g = 0; g < buffer.groups; ++g) {
            float largest = 0;
            bool finite = true;
            for (int64_t i = g * group; i < (g + 1) * group; ++i) {
                finite = finite && std::isfinite(x[i]);
                largest = std::max(largest, std::fabs(x[i]));
            }
            const bool zero = !finite || largest < 1.5516e-36f;
            volatile float scale = 127.0f / largest;
            volatile float step = kind == Grouped::q2_0 ? nearest_half(largest / 127.0f) : 1.0f / scale;
            int32_t sum = 0;
            bool same = true;
            for (int64_t i = g * group; i < (g + 1) * group; ++i) {
                volatile float product = x[i] * scale;
                const int q = zero ? 0 : static_cast<int>(std::nearbyint(product));
                same = same && buffer.q[i] == q;
                sum += q;
            }
            const std::string where = std::string(kernels->name) + " " + name_of(kind) + ", " + what + ", group " + str(g);
            check(same && buffer.minus_sum[g] == -sum, where + ": q or its sum");
            check(finite ? same_bits(buffer.step[g], zero ? 0.0f : step) : std::isnan(buffer.step[g]), where + ": step " + std::to_string(buffer.step[g]));
        }
        check(memory[memory.size() - 1] == 0xab, "nothing is written behind the buffer");
    }
}

static void test_quantize(Grouped kind) {
    for (const float magnitude : {1.0f, 3e-3f, 1e-3f, 1e-4f, 1e-6f, 1e-20f, 1e-37f, 1e-40f, 300.0f, 8.3e6f, 1e7f, 3e38f}) {
        Random random(7);
        std::vector<float> x(2560);
        for (float & v : x) {
            v = random.uniform() * magnitude;
        }
        compare_quantized(kind, x, "random times " + std::to_string(magnitude));
        for (const float bad : {NAN, INFINITY, -INFINITY}) {
            x[300] = bad;
            compare_quantized(kind, x, "not finite");
        }
    }
    compare_quantized(kind, std::vector<float>(256, 0.0f), "zeros");
    compare_quantized(kind, std::vector<float>(256, -0.0f), "negative zeros");
    std::vector<float> ties(512);
    for (int i = 0; i < 512; ++i) {
        ties[i] = i % 32 == 0 ? -127.0f : static_cast<float>(i % 253 - 126) + 0.5f;
    }
    compare_quantized(kind, ties, "ties");
    for (int bits = 0; bits < 0x8000; bits += 37) {  // steps around every float16
        std::vector<float> x(activation_group(kind), 0.0f);
        x[5] = static_cast<float>(127 * half_value(static_cast<uint16_t>(bits % 0x7c00)) * (1 + bits % 7 * 0x1p-13));
        compare_quantized(kind, x, "step near a float16");
    }
}

static void test_not_finite(Grouped kind) {
    const Problem p = make(kind, 40, 512, 1, Fill::random);
    const int64_t tokens = 3;
    std::vector<float> x(tokens * p.cols, 0.25f);
    x[p.cols + 100] = NAN;  // token 1
    for (const Kernels * kernels : tiers()) {
        std::vector<uint8_t> memory(grouped_quantized_bytes(kind, p.cols, tokens));
        const GroupedBuffer b = grouped_buffer(kind, memory.data(), p.cols, tokens);
        for (int64_t token = 0; token < tokens; ++token) {
            kernels->grouped.quantize_token(kind, x.data() + token * p.cols, p.cols, b.q + token * b.stride, b.step + token * b.groups,
                                            b.minus_sum + token * b.groups);
        }
        std::vector<float> y(tokens * p.rows);
        kernels->grouped.matmul(kind, p.packed.data(), p.rows, p.cols, b, y.data(), p.rows, 0, 2);
        for (int64_t i = 0; i < tokens * p.rows; ++i) {
            check(std::isnan(y[i]) == (i / p.rows == 1), std::string(kernels->name) + ": NaN in token 1 alone, not in " + str(i / p.rows));
        }
    }
}

int main() {
    test_bytes_of_tq1_0();
    for (const Grouped kind : all_grouped) {
        test_repack(kind);
        test_scales_that_are_not_finite(kind);
        test_quantize(kind);
        test_not_finite(kind);
        test_shapes(kind);
        test_extremes(kind);
        test_threads(kind);
        test_batch_independence(kind);
    }
    return finish("grouped");
}
