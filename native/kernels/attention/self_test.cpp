#include "self_test.h"

#include "ternary/self_test.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace attention {
namespace {

// Two heads that share keys and values, more positions than a block of any kernel takes at once, an odd number of queries.
constexpr int64_t head_dim = 64, heads = 2, queries = 19, positions = 70;

// The largest difference from the exact result; values go up to 2. Rounding alone stays below a hundredth of it.
constexpr double tolerance = 1e-3;

struct Numbers {
    uint32_t state = 2463534242u;
    uint32_t next() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return state;
    }
};

double half_value(uint16_t half) {  // of a normal number
    const double magnitude = std::ldexp(1024 + (half & 1023), (half >> 10 & 31) - 25);
    return half >> 15 ? -magnitude : magnitude;
}

// What the kernels compute from and what they write; no destructor of it may run inside of the guarded call.
struct Computation {
    const Kernels & kernels;
    std::vector<float> q = std::vector<float>(heads * queries * head_dim);
    std::vector<uint16_t> k = std::vector<uint16_t>(positions * head_dim), v = k;
    std::vector<uint16_t> mask = std::vector<uint16_t>(queries * positions);
    std::vector<float> out = std::vector<float>(queries * heads * head_dim), last = std::vector<float>(heads * head_dim);
    std::vector<float> partials = std::vector<float>(most_parts * partial_floats(heads, head_dim));
    std::vector<char> scratch = std::vector<char>(kernels.scratch_bytes(head_dim));

    explicit Computation(const Kernels & of) : kernels(of) {
        Numbers numbers;
        for (float & value : q) {
            value = static_cast<float>(static_cast<int32_t>(numbers.next() >> 8) - (1 << 23)) * 0x1p-23f;
        }
        for (std::vector<uint16_t> * halves : {&k, &v}) {
            for (uint16_t & half : *halves) {
                const uint32_t bits = numbers.next();
                half = static_cast<uint16_t>((bits & 0x8000) | ((13 + bits % 3) << 10) | (bits >> 20 & 0x3ff));
            }
        }
        for (int64_t i = 0; i < queries * positions; ++i) {
            mask[i] = sees(i / positions, i % positions) ? 0 : 0xfc00;
        }
    }

    static bool sees(int64_t query, int64_t position) { return position <= positions - queries + query; }

    void run() {
        const Prompt prompt{head_dim, heads, 1, queries, positions, q.data(), queries * head_dim, head_dim, k.data(), v.data(),
                            positions * head_dim, head_dim, positions * head_dim, head_dim, mask.data(), positions, 0.125f,
                            out.data(), heads * head_dim};
        const Pieces pieces(kernels, prompt, 2);
        for (int64_t i = 0; i < pieces.count(); ++i) {
            kernels.prefill(prompt, pieces[i], scratch.data());
        }
        const int64_t query = queries - 1;
        const Token token{head_dim, heads, 1, positions, q.data() + query * head_dim, queries * head_dim, k.data(), v.data(),
                          positions * head_dim, head_dim, positions * head_dim, head_dim, mask.data() + query * positions, 0.125f};
        const int64_t length = part_positions(positions);
        int64_t parts = 0;
        for (int64_t begin = 0; begin < positions; begin += length, ++parts) {
            kernels.attend(token, begin, std::min(begin + length, positions), partials.data() + parts * partial_floats(heads, head_dim));
        }
        combine(partials.data(), parts, heads, head_dim, 0, heads, last.data());
    }

    // The values of one query of one head.
    std::vector<double> expected(int64_t query, int64_t head) const {
        std::vector<double> values(head_dim);
        double sum = 0;
        for (int64_t p = 0; p < positions && sees(query, p); ++p) {
            double score = 0;
            for (int64_t d = 0; d < head_dim; ++d) {
                score += q[(head * queries + query) * head_dim + d] * half_value(k[p * head_dim + d]);
            }
            const double weight = std::exp(0.125 * score);
            sum += weight;
            for (int64_t d = 0; d < head_dim; ++d) {
                values[d] += weight * half_value(v[p * head_dim + d]);
            }
        }
        for (double & value : values) {
            value /= sum;
        }
        return values;
    }

    static bool agree(const float * got, const std::vector<double> & want) {
        return std::equal(want.begin(), want.end(), got, [](double w, float g) { return std::fabs(w - g) <= tolerance; });
    }

    bool right() const {
        for (int64_t head = 0; head < heads; ++head) {
            for (int64_t query = 0; query < queries; ++query) {
                if (!agree(out.data() + (query * heads + head) * head_dim, expected(query, head))) {
                    return false;
                }
            }
            if (!agree(last.data() + head * head_dim, expected(queries - 1, head))) {
                return false;
            }
        }
        return true;
    }
};

}  // namespace

std::string self_test(const Kernels & kernels) {
    Computation tested(kernels);
    if (!ternary::runs_without_sigill([](void * context) { static_cast<Computation *>(context)->run(); }, &tested)) {
        return "execute an instruction that this machine refuses (SIGILL), although its CPU claims to have it";
    }
    return tested.right() ? "" : "compute wrongly on this machine";
}

}  // namespace attention
