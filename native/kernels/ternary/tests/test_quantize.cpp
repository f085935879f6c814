// The activation quantizer: every tier against the definition, to the bit.

#include "support.h"

#include <cfenv>
#include <cmath>
#include <cstring>
#include <limits>

using namespace ternary;
using namespace ternary_test;

struct Expected {
    std::vector<int8_t> q;
    float scale;
    int32_t sum;
};

// The definition, in float32 and by another road: the remainder decides the rounding.
static Expected define(const std::vector<float> & x) {
    Expected e{std::vector<int8_t>(padded_cols(x.size()), 0), 0.0f, 0};
    float max_abs = 0.0f;
    bool finite = true;
    for (const float v : x) {
        finite = finite && std::isfinite(v);
        max_abs = std::fmax(max_abs, std::fabs(v));
    }
    if (!finite) {
        e.scale = std::numeric_limits<float>::quiet_NaN();
        return e;
    }
    e.scale = 127.0f / std::fmax(max_abs, 1e-5f);
    for (size_t i = 0; i < x.size(); ++i) {
        volatile float product = x[i] * e.scale;  // one rounding to float32, no fusing
        const double value = product;
        double rounded = std::floor(value);
        const double rest = value - rounded;
        if (rest > 0.5 || (rest == 0.5 && std::fmod(rounded, 2.0) != 0.0)) {
            rounded += 1.0;
        }
        e.q[i] = static_cast<int8_t>(std::fmin(std::fmax(rounded, -128.0), 127.0));
        e.sum += e.q[i];
    }
    return e;
}

static bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b)); }

static void compare(const std::vector<float> & x, const std::string & what) {
    const Expected e = define(x);
    for (const Kernels * kernels : tiers()) {
        const int64_t padded = padded_cols(x.size());
        std::vector<int8_t> q(padded + 1, 77);
        float scale = -1.0f;
        int32_t sum = -1;
        kernels->quantize_token(x.data(), x.size(), q.data(), &scale, &sum);
        const std::string where = std::string(kernels->name) + ", " + str(x.size()) + " columns, " + what;
        check(same_bits(scale, e.scale), where + ": scale " + std::to_string(scale) + ", expected " + std::to_string(e.scale));
        check(sum == e.sum, where + ": sum " + str(sum) + ", expected " + str(e.sum));
        check(q[padded] == 77, where + ": writes behind the padding");
        for (int64_t i = 0; i < padded; ++i) {
            check(q[i] == e.q[i], where + ": q[" + str(i) + "] = " + str(q[i]) + ", expected " + str(e.q[i]));
        }
    }
}

static std::vector<float> random_floats(int64_t n, uint64_t seed, float magnitude) {
    Random random(seed);
    std::vector<float> x(n);
    for (float & v : x) {
        v = random.uniform() * magnitude;
    }
    return x;
}

static void test_random() {
    const int64_t lengths[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 576, 2560, 6912, 8640, 65536};
    for (const int64_t n : lengths) {
        for (const float magnitude : {1.0f, 1e-6f, 1e-20f, 1e-40f, 300.0f, 3e38f}) {
            compare(random_floats(n, n, magnitude), "random times " + std::to_string(magnitude));
        }
    }
}

static void test_ties() {
    std::vector<float> x = {127.0f};  // scale exactly 1: halves are ties
    for (int i = -126; i < 126; ++i) {
        x.push_back(static_cast<float>(i) + 0.5f);
        x.push_back(std::nextafter(static_cast<float>(i) + 0.5f, 1000.0f));
        x.push_back(std::nextafter(static_cast<float>(i) + 0.5f, -1000.0f));
    }
    compare(x, "ties");
    for (float & v : x) {
        v = -v;
    }
    compare(x, "negative ties");
}

static void test_special_values() {
    const float infinity = std::numeric_limits<float>::infinity();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float denormal = std::numeric_limits<float>::denorm_min();
    const float largest = std::numeric_limits<float>::max();
    for (const int64_t n : {1, 5, 16, 64, 100}) {
        compare(std::vector<float>(n, 0.0f), "zeros");
        compare(std::vector<float>(n, -0.0f), "negative zeros");
        compare(std::vector<float>(n, denormal), "denormals");
        compare(std::vector<float>(n, 1e-5f), "the floor of max|x|");
        compare(std::vector<float>(n, largest), "largest floats");
        compare(std::vector<float>(n, -largest), "largest negative floats");
        for (const float bad : {nan, -nan, infinity, -infinity}) {
            for (int64_t at = 0; at < n; ++at) {
                std::vector<float> x = random_floats(n, at, 1.0f);
                x[at] = bad;
                compare(x, "not finite at " + str(at));
            }
        }
    }
}

static void test_max_at_each_position() {
    for (const int64_t n : {1, 7, 8, 33, 64, 100}) {
        for (int64_t at = 0; at < n; ++at) {
            for (const float sign : {1.0f, -1.0f}) {
                std::vector<float> x = random_floats(n, at, 1.0f);
                x[at] = sign * 2.5f;
                compare(x, "largest at " + str(at));
            }
        }
    }
}

static void test_buffer() {
    for (const int64_t cols : {4, 64, 576, 2560, 4096}) {
        const int64_t tokens = 5;
        const std::vector<float> x = random_floats(cols * tokens, cols, 1.0f);
        std::vector<uint8_t> memory(quantized_bytes(cols, tokens) + 8, 0xab);
        const QuantizedBuffer buffer = quantized_buffer(memory.data(), cols, tokens);
        check(buffer.stride % 64 == 0 && buffer.stride / 64 % 2 == 1, "stride is an odd number of lines");
        split(tokens, 3, [&](int64_t begin, int64_t end) { quantize(*tiers().back(), x.data(), cols, cols, buffer, begin, end); });
        for (int64_t token = 0; token < tokens; ++token) {
            const Expected e = define(std::vector<float>(x.begin() + token * cols, x.begin() + (token + 1) * cols));
            check(std::memcmp(e.q.data(), buffer.q + token * buffer.stride, e.q.size()) == 0, "buffer q of token " + str(token));
            check(same_bits(e.scale, buffer.scale[token]) && e.sum == buffer.sum[token], "buffer scale and sum of token " + str(token));
        }
        for (size_t i = quantized_bytes(cols, tokens); i < memory.size(); ++i) {
            check(memory[i] == 0xab, "nothing is written behind quantized_bytes");
        }
    }
}

int main() {
    check(std::fegetround() == FE_TONEAREST, "the default rounding mode");
    test_random();
    test_ties();
    test_special_values();
    test_max_at_each_position();
    test_buffer();
    return finish("quantize");
}
