// Speed of every kernel's prefill: the last 512 tokens of a prompt of each length, causal, in one thread.
//
//   bench_attention [--kernels NAME] [--shape HEADSxKV_HEADSxDIM] [--positions N] [--rounds N]
//
// Counted are the multiply-adds of the pairs that a query sees, for scores and for values. CPU time of some rounds: the median and
// the fastest. The results are tested by test_prefill.

#include "attention/attention.h"
#include "bench_support.h"

#include <cmath>
#include <cstring>
#include <string>

namespace {

using namespace kernel_bench;

struct Options {
    std::string kernels;
    int64_t heads = 20, kv_heads = 5, head_dim = 128;  // BitNet b1.58 2B4T
    std::vector<int64_t> positions = {128, 512, 2048, 4096};
    int rounds = 5;
};

struct Tier {
    const char * name;
    bool can_run;
};

std::vector<Tier> tiers() {
    const ternary::CpuFeatures cpu = ternary::cpu_features();
#if defined(__aarch64__)
    return {{"neon", cpu.neon}};
#else
    return {{"avx2", cpu.avx2}, {"avx512vnni", cpu.avx512f}, {"avx512amx", cpu.avx512f}};
#endif
}

struct Case {
    attention::Prompt prompt{};
    std::vector<float> q, out;
    std::vector<uint16_t> k, v, mask;

    Case(const Options & o, int64_t positions) {
        const int64_t queries = std::min<int64_t>(512, positions);
        uint64_t state = 1;
        const auto small = [&] { return static_cast<float>(static_cast<int32_t>(next_random(state) >> 32)) * 0x1p-31f; };
        q.resize(queries * o.heads * o.head_dim), out.resize(q.size());
        for (float & x : q) {
            x = small();
        }
        k.resize(positions * o.kv_heads * o.head_dim), v.resize(k.size());
        for (size_t i = 0; i < k.size(); ++i) {  // between 2^-3 and 2^-1
            k[i] = static_cast<uint16_t>(next_random(state) >> 16 & 0x83ff) | 12 << 10;
            v[i] = static_cast<uint16_t>(next_random(state) >> 16 & 0x83ff) | 13 << 10;
        }
        mask.assign(queries * positions, 0);
        for (int64_t i = 0; i < queries; ++i) {
            std::fill(mask.begin() + i * positions + positions - queries + i + 1, mask.begin() + (i + 1) * positions,
                      static_cast<uint16_t>(0xfc00));
        }
        prompt.head_dim = o.head_dim, prompt.heads = o.heads, prompt.kv_heads = o.kv_heads;
        prompt.queries = queries, prompt.positions = positions;
        prompt.q = q.data(), prompt.q_head_stride = o.head_dim, prompt.q_query_stride = o.heads * o.head_dim;
        prompt.k = k.data(), prompt.v = v.data();
        prompt.k_head_stride = prompt.v_head_stride = o.head_dim;
        prompt.k_position_stride = prompt.v_position_stride = o.kv_heads * o.head_dim;
        prompt.mask = mask.data(), prompt.mask_stride = positions;
        prompt.scale = 1.0f / std::sqrt(static_cast<float>(o.head_dim));
        prompt.out = out.data(), prompt.out_query_stride = o.heads * o.head_dim;
    }

    double multiply_adds() const {
        const auto queries = static_cast<double>(prompt.queries), positions = static_cast<double>(prompt.positions);
        const double pairs = queries * positions - queries * (queries - 1) / 2;
        return 2 * pairs * static_cast<double>(prompt.heads * prompt.head_dim);
    }
};

std::vector<double> seconds(const attention::Kernels & kernels, const Case & c, int rounds) {
    const attention::Pieces pieces(kernels, c.prompt, 1);
    const Memory scratch(static_cast<int64_t>(kernels.scratch_bytes(c.prompt.head_dim)));
    std::vector<double> all;
    for (int round = 0; round < rounds; ++round) {
        const double start = thread_seconds();
        for (int64_t i = 0; i < pieces.count(); ++i) {
            kernels.prefill(c.prompt, pieces[i], scratch.data);
        }
        all.push_back(thread_seconds() - start);
    }
    return all;
}

Options parse(int count, char ** arguments) {
    Options o;
    for (int i = 1; i + 1 < count; i += 2) {
        const std::string name = arguments[i], value = arguments[i + 1];
        if (name == "--kernels") {
            o.kernels = value;
        } else if (name == "--positions") {
            o.positions = {std::atoll(value.c_str())};
        } else if (name == "--rounds") {
            o.rounds = std::atoi(value.c_str());
        } else if (name != "--shape" || std::sscanf(value.c_str(), "%ldx%ldx%ld", &o.heads, &o.kv_heads, &o.head_dim) != 3) {
            std::fprintf(stderr, "error: %s %s is not an option; see the top of bench.cpp\n", name.c_str(), value.c_str());
            std::exit(2);
        }
    }
    return o;
}

}  // namespace

int main(int count, char ** arguments) {
    const Options options = parse(count, arguments);
    for (const Tier & tier : tiers()) {
        const attention::Kernels * kernels = tier.can_run ? attention::kernels_for(tier.name) : nullptr;
        if (kernels == nullptr || (!options.kernels.empty() && options.kernels != kernels->name)) {
            continue;
        }
        for (const int64_t positions : options.positions) {
            const Case c(options, positions);
            const std::vector<double> all = seconds(*kernels, c, options.rounds);
            const double time = median(all), fastest = *std::min_element(all.begin(), all.end());
            std::printf("%-7s %4lld of %5lld tokens: %8.3f ms, %6.1f G multiply-adds/s; fastest %8.3f ms, %6.1f\n",
                        kernels->name, static_cast<long long>(c.prompt.queries), static_cast<long long>(positions),
                        time * 1e3, c.multiply_adds() / time * 1e-9, fastest * 1e3, c.multiply_adds() / fastest * 1e-9);
        }
    }
}
