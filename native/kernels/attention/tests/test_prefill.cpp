// Every kernel against the definition in double precision, over masks, shapes and caches full of NaN; and bit for bit against
// itself, over divisions into pieces.

#include "support.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

namespace {

using namespace kernel_test;
using namespace attention_test;

enum class Mask { none, causal, window, random, biased, two_sequences, blind_rows, all_hidden };

constexpr const char * mask_names[] = {"none",   "causal",        "window",     "random",
                                       "biased", "two sequences", "blind rows", "all hidden"};

struct Shape {
    int64_t head_dim, heads, kv_heads, queries, positions;
    Mask mask;
};

// A prompt at the end of its context, in memory that is NaN where nothing may read.
struct Case {
    Shape shape;
    std::vector<float> q, out;
    std::vector<uint16_t> k, v, mask;

    int64_t mask_stride() const { return shape.positions + 5; }

    attention::Prompt prompt() {
        attention::Prompt p{};
        p.head_dim = shape.head_dim, p.heads = shape.heads, p.kv_heads = shape.kv_heads;
        p.queries = shape.queries, p.positions = shape.positions;
        p.q = q.data(), p.q_head_stride = shape.head_dim + 3, p.q_query_stride = shape.heads * (shape.head_dim + 3);
        p.k = k.data(), p.v = v.data();
        p.k_position_stride = shape.kv_heads * shape.head_dim, p.k_head_stride = shape.head_dim;
        p.v_position_stride = shape.head_dim, p.v_head_stride = shape.positions * shape.head_dim;
        p.mask = shape.mask == Mask::none ? nullptr : mask.data(), p.mask_stride = mask_stride();
        p.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
        out.assign(shape.queries * shape.heads * shape.head_dim, std::nanf(""));
        p.out = out.data(), p.out_query_stride = shape.heads * shape.head_dim;
        return p;
    }
};

uint16_t mask_at(const Shape & s, int64_t query, int64_t position, Random & random) {
    const int64_t own = s.positions - s.queries + query;  // the query's own position
    switch (s.mask) {
        case Mask::none: return 0;
        case Mask::causal: return position <= own ? 0 : hidden;
        case Mask::window: return position <= own && position > own - 20 ? 0 : hidden;
        case Mask::random: return random.next() % 3 == 0 ? hidden : 0;
        case Mask::biased: return position > own ? hidden : random.next() % 2 == 0 ? minus_two : 0;
        case Mask::two_sequences: return position <= own && position % 2 == query % 2 ? 0 : hidden;
        case Mask::blind_rows: return query % 3 == 1 || position > own ? hidden : 0;
        case Mask::all_hidden: return hidden;
    }
    return 0;
}

Case make_case(const Shape & s, uint64_t seed) {
    Case c{s, {}, {}, {}, {}, {}};
    Random random(seed);
    c.q.resize(s.queries * s.heads * (s.head_dim + 3));
    for (float & x : c.q) {
        x = 4 * random.uniform();
    }
    c.k.resize(s.kv_heads * s.positions * s.head_dim), c.v.resize(c.k.size());
    for (size_t i = 0; i < c.k.size(); ++i) {
        c.k[i] = random_half(random), c.v[i] = random_half(random);
    }
    c.mask.assign(s.queries * c.mask_stride(), not_a_number);
    for (int64_t position = 0; position < s.positions; ++position) {
        bool seen = false;
        for (int64_t query = 0; query < s.queries; ++query) {
            uint16_t & m = c.mask[query * c.mask_stride() + position];
            m = mask_at(s, query, position, random);
            seen = seen || m != hidden;
        }
        for (int64_t i = 0; !seen && i < s.kv_heads * s.head_dim; ++i) {  // what nobody wrote may be anything
            c.k[position * s.kv_heads * s.head_dim + i] = not_a_number;
            c.v[i / s.head_dim * s.positions * s.head_dim + position * s.head_dim + i % s.head_dim] = not_a_number;
        }
    }
    return c;
}

// As so many threads would compute it.
std::vector<float> run(const attention::Kernels & kernels, Case & c, int64_t threads) {
    const attention::Prompt prompt = c.prompt();
    const attention::Pieces pieces(kernels, prompt, threads);
    std::vector<char> scratch(kernels.scratch_bytes(prompt.head_dim) + 1);
    for (int64_t i = 0; i < pieces.count(); ++i) {
        const attention::Piece piece = pieces[i];
        check((piece.head_end - piece.head_begin) * (piece.query_end - piece.query_begin) <=
                  kernels.most_rows(prompt.head_dim),
              "a piece has too many rows");
        kernels.prefill(prompt, piece, scratch.data() + 1);
    }
    return c.out;
}

// One head of one query by the definition, and how far a kernel may be from it.
struct Expected {
    std::vector<double> values;
    double tolerance;
};

// Rounding errors grow as the square root of the number of terms (Higham and Mary 2019), here times 4. A score's error enters
// its weight as a factor.
Expected expected(const attention::Prompt & p, int64_t query, int64_t head, double product_error) {
    constexpr double epsilon = 1.0 / (1 << 24);
    const int64_t kv = head / (p.heads / p.kv_heads);
    const float * const q = p.q + head * p.q_head_stride + query * p.q_query_stride;
    std::vector<double> scores(p.positions, -std::numeric_limits<double>::infinity());
    double largest = -std::numeric_limits<double>::infinity(), terms = 0, largest_score = 0;
    for (int64_t i = 0; i < p.positions; ++i) {
        const uint16_t mask = p.mask == nullptr ? 0 : p.mask[query * p.mask_stride + i];
        if (mask == hidden) {
            continue;
        }
        double dot = 0, sum = 0;
        for (int64_t d = 0; d < p.head_dim; ++d) {
            const double term =
                static_cast<double>(q[d]) * value_of(p.k[kv * p.k_head_stride + i * p.k_position_stride + d]);
            dot += term, sum += std::fabs(term);
        }
        scores[i] = p.scale * dot + value_of(mask);
        largest = std::max(largest, scores[i]), terms = std::max(terms, p.scale * sum);
        largest_score = std::max(largest_score, std::fabs(scores[i]));
    }
    Expected result{std::vector<double>(p.head_dim, 0.0), 0.0};
    double sum = 0, largest_value = 0;
    for (int64_t i = 0; i < p.positions; ++i) {
        if (std::isinf(scores[i])) {
            continue;
        }
        const double weight = std::exp(scores[i] - largest);
        sum += weight;
        for (int64_t d = 0; d < p.head_dim; ++d) {
            const double value = value_of(p.v[kv * p.v_head_stride + i * p.v_position_stride + d]);
            result.values[d] += weight * value;
            largest_value = std::max(largest_value, std::fabs(value));
        }
    }
    for (double & x : result.values) {
        x = sum > 0 ? x / sum : 0;
    }
    const double growth = 4 * std::sqrt(static_cast<double>(p.head_dim));
    const double of_scores = terms * (epsilon * (growth + 4) + product_error) + 4 * epsilon * largest_score;
    const double of_sums = epsilon * (4 * std::sqrt(static_cast<double>(p.positions)) + 16) + product_error;
    result.tolerance = largest_value * (2 * of_scores + 2 * of_sums);
    return result;
}

std::string name_of(const attention::Kernels & kernels, const Shape & s) {
    return std::string(kernels.name) + " dim " + str(s.head_dim) + " heads " + str(s.heads) + "/" + str(s.kv_heads) +
           " queries " + str(s.queries) + " of " + str(s.positions) + ", mask " + mask_names[static_cast<int>(s.mask)];
}

// Products of bfloat16s that are the two halves of a float leave this much of a term out.
double product_error(const attention::Kernels & kernels) {
    return std::strcmp(kernels.name, "amx") == 0 ? 1.0 / (1 << 16) : 0.0;
}

void test_shape(const attention::Kernels & kernels, const Shape & s, uint64_t seed) {
    Case c = make_case(s, seed);
    const std::vector<float> out = run(kernels, c, 1);
    for (const int64_t threads : {2, 5, 64}) {
        const std::vector<float> again = run(kernels, c, threads);
        check(std::memcmp(out.data(), again.data(), out.size() * sizeof(float)) == 0,
              name_of(kernels, s) + ": " + str(threads) + " threads give other bits");
    }
    const attention::Prompt prompt = c.prompt();
    const int64_t step = std::max<int64_t>(1, s.queries / 20);  // the definition is slow
    for (int64_t query = 0; query < s.queries; query += step) {
        for (int64_t head = 0; head < s.heads; ++head) {
            const Expected e = expected(prompt, query, head, product_error(kernels));
            double worst = 0;
            for (int64_t d = 0; d < s.head_dim; ++d) {
                const double error = std::fabs(out[(query * s.heads + head) * s.head_dim + d] - e.values[d]);
                worst = error <= worst ? worst : error;  // NaN counts
            }
            check(worst <= e.tolerance, name_of(kernels, s) + ": query " + str(query) + " head " + str(head) +
                                            " off by " + std::to_string(worst * 1e6) + "e-6 of " +
                                            std::to_string(e.tolerance * 1e6) + "e-6");
        }
    }
}

constexpr Mask all_masks[] = {Mask::none,   Mask::causal,        Mask::window,     Mask::random,
                              Mask::biased, Mask::two_sequences, Mask::blind_rows, Mask::all_hidden};

void test_shapes(const attention::Kernels & kernels) {
    uint64_t seed = 1;
    for (const int64_t head_dim : {16, 64, 80, 96, 128, 256}) {
        if (quick() && head_dim != 16 && head_dim != 80) {
            continue;
        }
        for (const auto & [heads, kv_heads] : {std::pair<int64_t, int64_t>{1, 1}, {4, 1}, {6, 2}, {34, 1}}) {
            for (const auto & [queries, positions] : {std::pair<int64_t, int64_t>{1, 1}, {2, 70}, {13, 13}, {50, 150}}) {
                for (const Mask mask : all_masks) {
                    test_shape(kernels, {head_dim, heads, kv_heads, queries, positions, mask}, ++seed);
                }
            }
        }
    }
    for (const Mask mask : {Mask::none, Mask::causal, Mask::window}) {
        for (const auto & [queries, positions] : {std::pair<int64_t, int64_t>{600, 600}, {129, 700}, {64, 256}}) {
            if (quick() && queries > 64) {
                continue;
            }
            test_shape(kernels, {quick() ? 32 : 128, 5, 1, queries, positions, mask}, ++seed);
        }
    }
}

// Scores of hundreds, which rise along the context: all weight is on a few positions, and the scale changes often.
void test_large_scores(const attention::Kernels & kernels) {
    Case c = make_case({64, 4, 2, 20, 300, Mask::causal}, 99);
    for (float & x : c.q) {
        x *= 100;
    }
    const std::vector<float> out = run(kernels, c, 1);
    const attention::Prompt prompt = c.prompt();
    for (int64_t query = 0; query < 20; ++query) {
        for (int64_t head = 0; head < 4; ++head) {
            const Expected e = expected(prompt, query, head, product_error(kernels));
            for (int64_t d = 0; d < 64; ++d) {
                check(std::fabs(out[(query * 4 + head) * 64 + d] - e.values[d]) <= e.tolerance,
                      std::string(kernels.name) + ": large scores");
            }
        }
    }
}

// A query that is not a number is NaN, not 0, and the others are not.
void test_not_a_number(const attention::Kernels & kernels) {
    Case c = make_case({64, 4, 2, 20, 100, Mask::causal}, 7);
    c.q[3 * 4 * 67 + 2 * 67 + 5] = std::nanf("");  // query 3, head 2
    const std::vector<float> out = run(kernels, c, 1);
    for (int64_t row = 0; row < 80; ++row) {
        check(std::isnan(out[row * 64]) == (row == 3 * 4 + 2), std::string(kernels.name) + ": NaN in row " + str(row));
    }
}

// What is computed in float32 does not depend on how many floats a vector holds.
void test_same_bits(const std::vector<const attention::Kernels *> & all) {
    Case c = make_case({80, 6, 2, 50, 150, Mask::biased}, 11);
    std::vector<float> first;
    for (const attention::Kernels * kernels : all) {
        if (std::strcmp(kernels->name, "amx") != 0) {
            const std::vector<float> out = run(*kernels, c, 1);
            first = first.empty() ? out : first;
            check(std::memcmp(out.data(), first.data(), out.size() * sizeof(float)) == 0,
                  std::string(kernels->name) + " computes other bits than " + all[0]->name);
        }
    }
}

}  // namespace

int main() {
    const std::vector<const attention::Kernels *> all = available();
    test_same_bits(all);
    for (const attention::Kernels * kernels : all) {
        test_shapes(*kernels);
        test_large_scores(*kernels);
        test_not_a_number(*kernels);
    }
    return finish("prefill");
}
