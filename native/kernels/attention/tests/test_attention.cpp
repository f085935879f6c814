// Every kernel against the definition in double precision, over splits, masks, shapes and caches full of NaN.

#include "attention/attention.h"
#include "support.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace {

using namespace kernel_test;
using namespace attention_test;

struct Case {
    int64_t head_dim, heads, kv_heads, positions;
    bool masked;
    std::vector<float> q;
    std::vector<uint16_t> k, v, mask;

    attention::Token token() const {
        attention::Token t{};
        t.head_dim = head_dim, t.heads = heads, t.kv_heads = kv_heads, t.positions = positions;
        t.q = q.data(), t.q_head_stride = head_dim + 3;
        t.k = k.data(), t.v = v.data();
        t.k_position_stride = kv_heads * head_dim, t.k_head_stride = head_dim;         // as llama.cpp's cache
        t.v_position_stride = head_dim, t.v_head_stride = positions * head_dim;        // another order
        t.mask = masked ? mask.data() : nullptr;
        t.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
        return t;
    }
};

Case make_case(int64_t head_dim, int64_t heads, int64_t kv_heads, int64_t positions, bool masked, uint64_t seed) {
    Case c{head_dim, heads, kv_heads, positions, masked, {}, {}, {}, {}};
    Random random(seed);
    c.q.resize(heads * (head_dim + 3));
    for (float & x : c.q) {
        x = 4 * random.uniform();
    }
    c.k.resize(kv_heads * positions * head_dim);
    c.v.resize(c.k.size());
    for (size_t i = 0; i < c.k.size(); ++i) {
        c.k[i] = random_half(random), c.v[i] = random_half(random);
    }
    c.mask.resize(positions);
    for (int64_t p = 0; p < positions; ++p) {
        const uint32_t kind = random.next() % 4;
        c.mask[p] = kind == 0 ? hidden : kind == 1 ? minus_two : 0;
        if (masked && c.mask[p] == hidden) {  // what nobody wrote may be anything
            for (int64_t h = 0; h < kv_heads; ++h) {
                for (int64_t d = 0; d < head_dim; ++d) {
                    c.k[p * kv_heads * head_dim + h * head_dim + d] = not_a_number;
                    c.v[h * positions * head_dim + p * head_dim + d] = not_a_number;
                }
            }
        }
    }
    return c;
}

// One head by the definition; false when nothing is visible.
bool reference(const attention::Token & t, int64_t head, std::vector<double> & out) {
    const int64_t kv = head / (t.heads / t.kv_heads);
    std::vector<double> scores(t.positions, -std::numeric_limits<double>::infinity());
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t p = 0; p < t.positions; ++p) {
        if (t.mask != nullptr && t.mask[p] == hidden) {
            continue;
        }
        double dot = 0;
        for (int64_t d = 0; d < t.head_dim; ++d) {
            dot += static_cast<double>(t.q[head * t.q_head_stride + d]) *
                   value_of(t.k[kv * t.k_head_stride + p * t.k_position_stride + d]);
        }
        scores[p] = t.scale * dot + (t.mask == nullptr ? 0 : value_of(t.mask[p]));
        largest = std::fmax(largest, scores[p]);
    }
    out.assign(t.head_dim, 0);
    for (int64_t p = 0; p < t.positions; ++p) {
        if (std::isinf(scores[p])) {
            continue;
        }
        const double weight = std::exp(scores[p] - largest);
        sum += weight;
        for (int64_t d = 0; d < t.head_dim; ++d) {
            out[d] += weight * value_of(t.v[kv * t.v_head_stride + p * t.v_position_stride + d]);
        }
    }
    for (double & x : out) {
        x = sum > 0 ? x / sum : 0;
    }
    return sum > 0;
}

// As `parts` threads would compute it.
std::vector<float> run(const attention::Kernels & kernels, const attention::Token & t, int64_t parts) {
    const size_t stride = attention::partial_floats(t.heads, t.head_dim);
    std::vector<float> partials(parts * stride, std::nanf("")), out(t.heads * t.head_dim, std::nanf(""));
    for (int64_t i = 0; i < parts; ++i) {
        kernels.attend(t, t.positions * i / parts, t.positions * (i + 1) / parts, partials.data() + i * stride);
    }
    for (int64_t i = 0; i < parts; ++i) {
        attention::combine(partials.data(), parts, t.heads, t.head_dim, t.heads * i / parts, t.heads * (i + 1) / parts,
                           out.data());
    }
    return out;
}

void test_case(const attention::Kernels & kernels, const Case & c) {
    const attention::Token t = c.token();
    for (const int64_t parts : {1, 2, 3, 7}) {
        const std::vector<float> out = run(kernels, t, parts);
        std::vector<double> expected;
        for (int64_t head = 0; head < t.heads; ++head) {
            reference(t, head, expected);
            double worst = 0;
            for (int64_t d = 0; d < t.head_dim; ++d) {
                const double error = std::fabs(out[head * t.head_dim + d] - expected[d]);
                worst = error <= worst ? worst : error;  // NaN counts
            }
            // values are at most 4; a score's float32 error enters the weights as a factor
            check(worst < 2e-5, std::string(kernels.name) + " dim " + std::to_string(c.head_dim) + " heads " +
                                    std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " positions " +
                                    std::to_string(c.positions) + (c.masked ? " masked" : "") + " parts " +
                                    std::to_string(parts) + ": off by " + std::to_string(worst));
        }
    }
}

void test_kernels(const attention::Kernels & kernels) {
    uint64_t seed = 1;
    for (const int64_t head_dim : {16, 48, 64, 80, 128, 256}) {
        for (const auto & [heads, kv_heads] : {std::pair<int64_t, int64_t>{1, 1}, {4, 1}, {20, 5}, {6, 6}, {34, 2}}) {
            for (const int64_t positions : {1, 2, 15, 16, 17, 33, 100}) {
                for (const bool masked : {false, true}) {
                    test_case(kernels, make_case(head_dim, heads, kv_heads, positions, masked, ++seed));
                }
            }
        }
    }
    Case large = make_case(128, 4, 2, 50, false, 99);  // scores of hundreds: all weight on one position
    for (float & x : large.q) {
        x *= 100;
    }
    test_case(kernels, large);
    Case blind = make_case(64, 4, 2, 20, true, 5);
    for (uint16_t & m : blind.mask) {
        m = hidden;
    }
    test_case(kernels, blind);
}

// A query that is not a number, or one visible key: the heads that it reaches are NaN, not 0.
void test_not_a_number(const attention::Kernels & kernels) {
    for (const int64_t parts : {1, 3}) {
        Case c = make_case(64, 4, 2, 40, false, 7);
        c.q[2 * (64 + 3) + 5] = std::nanf("");
        c.k[30 * 2 * 64 + 9] = not_a_number;  // of the first key-value head, heads 0 and 1
        const std::vector<float> out = run(kernels, c.token(), parts);
        for (int64_t i = 0; i < 4 * 64; ++i) {
            check(std::isnan(out[i]) == (i / 64 != 3), std::string(kernels.name) + ": NaN in heads 0 to 2 alone, not in " +
                                                           std::to_string(i / 64));
        }
    }
}

}  // namespace

int main() {
    for (int64_t positions = 1; positions < 70000; positions += 1 + positions / 50) {
        const int64_t length = attention::part_positions(positions);
        check(length > 0 && length % 16 == 0 && (positions + length - 1) / length <= attention::most_parts,
              std::to_string(positions) + " positions in parts of " + std::to_string(length));
    }
    check(attention::kernels_for("scalar") == nullptr, "the scalar tier has no kernels");
    for (const attention::Kernels * kernels : available()) {
        test_kernels(*kernels);
        test_not_a_number(*kernels);
    }
    return finish("attention");
}
