// The chain of trust: GGUF bytes taken apart by slow code written from the formats' definitions -> scalar tier -> every
// other tier, any number of tokens, any split over threads: the same bits.

#include "head/head.h"
#include "ternary/ternary.h"
#include "ternary/tests/support.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>

namespace {

using namespace ternary_test;

struct Matrix {
    head::Type type;
    int64_t rows, cols;
    std::vector<uint8_t> bytes;
};

const char * name_of(head::Type type) {
    return type == head::Type::q4_k ? "q4_k" : type == head::Type::q5_k ? "q5_k" : "q6_k";
}

constexpr head::Type types[] = {head::Type::q4_k, head::Type::q5_k, head::Type::q6_k};

float half_value(const uint8_t * p) {
    const int h = p[0] | p[1] << 8;
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return static_cast<float>(h >> 15 ? -value : value);
}

// Any bytes are a valid row, but for the halves, which are kept finite and near 2^-14 .. 1.
enum class Fill { random, all_ones, all_zero };

Matrix make_matrix(head::Type type, int64_t rows, int64_t cols, Fill fill, uint64_t seed) {
    Matrix m{type, rows, cols, std::vector<uint8_t>(rows * head::row_bytes(type, cols))};
    Random random(seed);
    for (uint8_t & byte : m.bytes) {
        byte = fill == Fill::random ? static_cast<uint8_t>(random.next() >> 24) : fill == Fill::all_ones ? 0xff : 0;
    }
    const size_t block = head::row_bytes(type, head::block_cols);
    for (size_t at = 0; at < m.bytes.size(); at += block) {
        const size_t halves[2] = {type == head::Type::q6_k ? 208u : 0u, type == head::Type::q6_k ? 208u : 2u};
        for (const size_t half : halves) {
            m.bytes[at + half + 1] = static_cast<uint8_t>(random.next() % 60 | (random.next() & 128));
        }
        if (fill == Fill::all_ones && type == head::Type::q6_k) {
            for (int i = 192; i < 208; ++i) {
                m.bytes[at + i] = 0x80;  // the largest scale
            }
        }
    }
    return m;
}

// Integer parts of one weight: value = d * scale * level - dmin * min.
struct Weight {
    float d, dmin;
    int scale, level, min;
};

Weight weight(const Matrix & m, int64_t row, int64_t col) {
    const uint8_t * p = m.bytes.data() + row * head::row_bytes(m.type, m.cols) + col / 256 * head::row_bytes(m.type, 256);
    const int i = static_cast<int>(col % 256);
    if (m.type == head::Type::q6_k) {
        // 128 columns at a time: ql 64 bytes, qh 32 bytes; column 32 n + k of them has qh byte k, bits 2n
        const int chunk = i / 128, n = i % 128 / 32, k = i % 32;
        const int low = n < 2 ? p[chunk * 64 + n * 32 + k] & 15 : p[chunk * 64 + (n - 2) * 32 + k] >> 4;
        const int high = p[128 + chunk * 32 + k] >> (2 * n) & 3;
        return {half_value(p + 208), 0, static_cast<int8_t>(p[192 + i / 16]), (low | high << 4) - 32, 0};
    }
    const uint8_t * s = p + 4;
    const int g = i / 32, k = i % 32;
    const int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
    const int min = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | s[g] >> 6 << 4;
    const uint8_t * qs = p + (m.type == head::Type::q5_k ? 48 : 16);
    int level = g % 2 == 0 ? qs[g / 2 * 32 + k] & 15 : qs[g / 2 * 32 + k] >> 4;
    if (m.type == head::Type::q5_k) {
        level += (p[16 + k] >> g & 1) * 16;
    }
    return {half_value(p), half_value(p + 2), scale, level, min};
}

// The definition in head.h, in the same order of float operations.
float expected(const Matrix & m, int64_t row, const head::Activations * token) {
    float y = 0.0f;
    for (int64_t block = 0; block < m.cols / 256; ++block) {
        int64_t integer = 0, min_integer = 0;
        Weight w{};
        for (int i = 0; i < 256; ++i) {
            w = weight(m, row, block * 256 + i);
            integer += static_cast<int64_t>(w.scale) * w.level * token[block].q[i];
            min_integer += static_cast<int64_t>(w.min) * token[block].q[i];
        }
        const volatile float factor = w.d * token[block].a;  // volatile: rounded here, not fused
        const volatile float product = static_cast<float>(static_cast<int32_t>(integer)) * factor;
        y += product;
        if (m.type != head::Type::q6_k) {
            const volatile float min_factor = w.dmin * token[block].a;
            const volatile float min_product = static_cast<float>(static_cast<int32_t>(min_integer)) * min_factor;
            y -= min_product;
        }
    }
    return y;
}

struct Aligned {
    std::vector<uint8_t> storage;
    uint8_t * data;
    explicit Aligned(size_t bytes) : storage(bytes + 64) {
        data = storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
    }
};

struct Tokens {
    Aligned memory;
    head::Batch batch;
    Tokens(const std::vector<float> & x, int64_t cols, int64_t tokens)
        : memory(tokens * head::token_blocks(cols) * sizeof(head::Activations)) {
        auto * blocks = reinterpret_cast<head::Activations *>(memory.data);
        for (int64_t token = 0; token < tokens; ++token) {
            head::quantize(x.data() + token * cols, cols, blocks + token * head::token_blocks(cols));
        }
        batch = {blocks, tokens};
    }
};

std::vector<float> random_x(int64_t count, uint64_t seed) {
    Random random(seed);
    std::vector<float> x(count);
    for (float & value : x) {
        value = random.uniform() * std::ldexp(1.0f, static_cast<int>(random.next() % 8));
    }
    return x;
}

bool same_bits(const std::vector<float> & a, const std::vector<float> & b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<const head::Kernels *> kernels_here() {
    std::vector<const head::Kernels *> result;
    for (const ternary::Kernels * tier : tiers()) {
        const head::Kernels * kernels = head::kernels_for(tier->name);
        if (kernels != nullptr && std::find(result.begin(), result.end(), kernels) == result.end()) {
            result.push_back(kernels);
        }
    }
    return result;
}

Aligned repacked(const Matrix & m, int threads) {
    Aligned packed(head::packed_bytes(m.type, m.rows, m.cols));
    std::memset(packed.data, 0xa5, packed.storage.size() - 64);  // every byte must be written
    split(head::panel_count(m.rows), threads, [&](int64_t begin, int64_t end) {
        head::repack(m.type, m.bytes.data(), m.rows, m.cols, packed.data, begin, end);
    });
    return packed;
}

std::vector<float> product(const head::Kernels & kernels, const Matrix & m, const uint8_t * packed, const head::Batch & batch,
                           int threads) {
    std::vector<float> y(m.rows * batch.tokens, -1.0f);
    split(head::panel_count(m.rows), threads, [&](int64_t begin, int64_t end) {
        kernels.matmul(m.type, packed, m.rows, m.cols, batch, y.data(), m.rows, begin, end);
    });
    return y;
}

void test_against_definition(const Matrix & m, int64_t tokens, uint64_t seed, const std::string & what) {
    const std::vector<float> x = random_x(tokens * m.cols, seed);
    const Tokens quantized(x, m.cols, tokens);
    const Aligned packed = repacked(m, 2);
    std::vector<float> want(m.rows * tokens);
    for (int64_t token = 0; token < tokens; ++token) {
        for (int64_t row = 0; row < m.rows; ++row) {
            want[token * m.rows + row] = expected(m, row, quantized.batch.blocks + token * head::token_blocks(m.cols));
        }
    }
    for (const head::Kernels * kernels : kernels_here()) {
        for (const int threads : {1, 3}) {
            check(same_bits(product(*kernels, m, packed.data, quantized.batch, threads), want),
                  std::string(kernels->name) + " " + what + ", " + str(tokens) + " tokens, " + str(threads) + " threads");
        }
    }
}

void test_shapes() {
    for (const head::Type type : types) {
        for (const int64_t rows : {1, 15, 16, 17, 32, 33, 100}) {
            for (const int64_t cols : {256, 512, 2560}) {
                const std::string what = std::string(name_of(type)) + " " + str(rows) + " x " + str(cols);
                test_against_definition(make_matrix(type, rows, cols, Fill::random, rows + cols), 3, 7, what);
            }
        }
        const Matrix m = make_matrix(type, 40, 512, Fill::random, 5);
        for (const int64_t tokens : {1, 2, 4, 5, 7, 8, 11, 12, 13, 16, 17, 25, 96, 97, 200}) {
            test_against_definition(m, quick() ? std::min<int64_t>(tokens, 25) : tokens, 11, name_of(type));
        }
    }
}

// The largest sums that can be: every code at an end, every activation at +-127.
void test_extremes() {
    for (const head::Type type : types) {
        for (const Fill fill : {Fill::all_ones, Fill::all_zero}) {
            Matrix m = make_matrix(type, 33, 512, fill, 3);
            if (fill == Fill::all_zero && type == head::Type::q6_k) {
                for (size_t at = 0; at < m.bytes.size(); at += 210) {
                    std::memset(m.bytes.data() + at + 192, 0x80, 16);
                }
            }
            for (const float sign : {1.0f, -1.0f}) {
                constexpr int64_t tokens = 13;  // tiles, where a tier has them
                const std::vector<float> x(tokens * 512, sign);
                const Tokens quantized(x, 512, tokens);
                check(quantized.batch.blocks[0].q[5] == -127, "equal values become -127");
                const Aligned packed = repacked(m, 1);
                for (const head::Kernels * kernels : kernels_here()) {
                    const std::vector<float> y = product(*kernels, m, packed.data, quantized.batch, 1);
                    for (int64_t row = 0; row < 33; ++row) {
                        const float want = expected(m, row, quantized.batch.blocks);
                        check(y[row] == want && y[(tokens - 1) * 33 + row] == want,
                              std::string(kernels->name) + " " + name_of(type) + " extreme, row " + str(row));
                    }
                }
            }
        }
    }
}

void test_one_token_alone() {
    for (const head::Type type : types) {
        const Matrix m = make_matrix(type, 64, 768, Fill::random, 17);
        const std::vector<float> x = random_x(30 * 768, 23);
        const Tokens all(x, 768, 30);
        const Aligned packed = repacked(m, 1);
        for (const head::Kernels * kernels : kernels_here()) {
            const std::vector<float> y = product(*kernels, m, packed.data, all.batch, 1);
            for (int64_t token = 0; token < 30; ++token) {
                const head::Batch one{all.batch.blocks + token * head::token_blocks(768), 1};
                const std::vector<float> alone = product(*kernels, m, packed.data, one, 1);
                check(std::memcmp(alone.data(), y.data() + token * 64, 64 * sizeof(float)) == 0,
                      std::string(kernels->name) + ": token " + str(token) + " alone");
            }
        }
    }
}

void test_quantize() {
    Random random(31);
    for (int round = 0; round < 200; ++round) {
        std::vector<float> x(256);
        const float size = std::ldexp(1.0f, static_cast<int>(random.next() % 60) - 40);
        for (float & value : x) {
            value = random.uniform() * size;
        }
        float extreme = 0;
        for (const float value : x) {
            extreme = std::fabs(value) > std::fabs(extreme) ? value : extreme;
        }
        Tokens quantized(x, 256, 1);
        const head::Activations & block = *quantized.batch.blocks;
        const float inverse = -127.0f / extreme;
        check(block.a == 1.0f / inverse, "the scale of block " + str(round));
        int sum = 0;
        for (int i = 0; i < 256; ++i) {
            const volatile float scaled = inverse * x[i];
            check(block.q[i] == std::min(127, static_cast<int>(std::nearbyint(scaled))), "q of block " + str(round));
            sum += block.q[i];
            if (i % 16 == 15) {
                check(block.sum16[i / 16] == sum && block.minus_32_sum16[i / 16] == -32 * sum, "sum16");
                sum = 0;
            }
        }
        for (int g = 0; g < 8; ++g) {
            check(block.sum32[g] == block.sum16[2 * g] + block.sum16[2 * g + 1], "sum32");
        }
    }
}

// What cannot be represented: a block that is zero or next to it gives 0; NaN and infinity give NaN in every row.
void test_odd_values() {
    const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
    for (const head::Type type : types) {
        const Matrix m = make_matrix(type, 32, 512, Fill::random, 41);
        const Aligned packed = repacked(m, 1);
        for (const float value : {0.0f, -0.0f, 1e-40f, 1e-37f, inf, -inf, nan}) {
            std::vector<float> x = random_x(512, 43);
            std::fill(x.begin(), x.begin() + 256, 0.0f);
            x[100] = value;
            const Tokens quantized(x, 512, 1);
            for (const head::Kernels * kernels : kernels_here()) {
                for (const float y : product(*kernels, m, packed.data, quantized.batch, 1)) {
                    check(std::isfinite(value) == std::isfinite(y) && std::isnan(y) == !std::isfinite(value), "odd value");
                }
            }
        }
    }
}

void test_unaligned_memory() {
    const Matrix m = make_matrix(head::Type::q6_k, 48, 256, Fill::random, 51);
    const std::vector<float> x = random_x(256, 53);
    const Tokens quantized(x, 256, 1);
    const Aligned packed = repacked(m, 1);
    Aligned moved(head::packed_bytes(m.type, m.rows, m.cols) + 64);
    std::memcpy(moved.data + 4, packed.data, head::packed_bytes(m.type, m.rows, m.cols));
    for (const head::Kernels * kernels : kernels_here()) {
        check(same_bits(product(*kernels, m, packed.data, quantized.batch, 1), product(*kernels, m, moved.data + 4, quantized.batch, 1)),
              std::string(kernels->name) + ": unaligned weights");
    }
}

void test_dispatch() {
    check(head::kernels_for("no such tier") == nullptr, "an unknown tier has no kernels");
    check(head::kernels_for("scalar") != nullptr, "scalar is always there");
    for (const ternary::Kernels * tier : tiers()) {
        const head::Kernels * kernels = head::kernels_for(tier->name);
        check(kernels != nullptr, std::string("no kernels for tier ") + tier->name);
        std::printf("tier %s: %s\n", tier->name, kernels == nullptr ? "none" : kernels->name);
    }
}

}  // namespace

int main() {
    test_dispatch();
    test_quantize();
    test_shapes();
    test_extremes();
    test_one_token_alone();
    test_odd_values();
    test_unaligned_memory();
    return finish("head");
}
