// Speed of weights with a scale for every group, beside I2_S (layout 2bit) and this machine's limits.
//
//   bench_grouped [--tier NAME] [--kind q2_0|tq1_0|tq2_0] [--shape ROWSxCOLS] [--tokens N] [--threads N] [--rounds N] [--seconds S]
//
// As in bench_ternary: CPU time of the slowest thread, at least 256 MB of weights in rotation, medians of rounds; a round is
// limit, I2_S, grouped, limit. `of I2_S` is the median of the rounds' own ratios of multiply-adds per second.

#include "bench_support.h"
#include "peaks/peaks.h"
#include "ternary/ternary.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace kernel_bench;
using namespace ternary;

constexpr int64_t rotation_bytes = 256 << 20;

struct Options {
    std::string tier, kind;
    long long rows = 2560, cols = 2560;
    std::vector<int64_t> tokens = {1, 8, 128, 512};
    std::vector<int> threads = {1, 2};
    int rounds = 5;
    double seconds = 0.1;
};

const char * name_of(Grouped kind) {
    return kind == Grouped::q2_0 ? "q2_0" : kind == Grouped::tq1_0 ? "tq1_0" : "tq2_0";
}

// Matrix `index`, panels of one thread's share.
using Product = std::function<void(int64_t index, int64_t panel_begin, int64_t panel_end)>;

struct Side {
    int64_t bytes;
    Product product;
    std::vector<double> seconds;
};

double seconds_of(const Side & side, int64_t panels, int threads, int64_t calls) {
    const int64_t matrices = rotation_bytes / side.bytes;
    return timed(threads, [&](int thread) {
        for (int64_t call = 0; call < calls; ++call) {
            side.product(call % matrices, thread * panels / threads, (thread + 1) * panels / threads);
        }
    }) / static_cast<double>(calls);
}

void run(const Options & options, const Kernels & kernels, const peaks::Loops & loops, const Memory & weights, Grouped kind,
         int64_t tokens, int threads) {
    const int64_t rows = options.rows, cols = options.cols, panels = panel_count(rows);
    std::vector<float> x(cols), y(tokens * rows);
    uint64_t state = 7;
    Memory activations(quantized_bytes(cols, tokens)), groups(grouped_quantized_bytes(kind, cols, tokens));
    const QuantizedBuffer q = quantized_buffer(activations.data, cols, tokens);
    const GroupedBuffer g = grouped_buffer(kind, groups.data, cols, tokens);
    for (int64_t token = 0; token < tokens; ++token) {
        for (float & v : x) {
            v = static_cast<float>(static_cast<int64_t>(next_random(state) >> 40) - (1 << 23));
        }
        quantize(kernels, x.data() - token * cols, cols, cols, q, token, token + 1);
        kernels.grouped.quantize_token(kind, x.data(), cols, g.q + token * g.stride, g.step + token * g.groups, g.minus_sum + token * g.groups);
    }
    Side plain{static_cast<int64_t>(packed_bytes(Layout::two_bit, rows, cols)), {}, {}};
    plain.product = [&](int64_t index, int64_t begin, int64_t end) {
        kernels.two_bit.matmul(weights.data + index * plain.bytes, rows, cols, 0.5f, q, y.data(), rows, begin, end);
    };
    Side grouped{static_cast<int64_t>(grouped_packed_bytes(kind, rows, cols)), {}, {}};
    grouped.product = [&](int64_t index, int64_t begin, int64_t end) {
        kernels.grouped.matmul(kind, weights.data + index * grouped.bytes, rows, cols, g, y.data(), rows, begin, end);
    };
    std::vector<double> of_memory, of_peak, of_plain, memory;
    for (int round = 0; round < options.rounds; ++round) {
        const double mac = peak_multiply_adds(loops, threads), read = peak_read(loops, weights.data, weights.bytes, threads);
        for (Side * side : {&plain, &grouped}) {
            const int64_t calls = std::max<int64_t>(1, static_cast<int64_t>(options.seconds / seconds_of(*side, panels, threads, 1)));
            side->seconds.push_back(seconds_of(*side, panels, threads, calls));
        }
        memory.push_back((read + peak_read(loops, weights.data, weights.bytes, threads)) / 2);
        const double peak = (mac + peak_multiply_adds(loops, threads)) / 2, seconds = grouped.seconds.back();
        of_memory.push_back(100 * static_cast<double>(grouped.bytes) / seconds / memory.back());
        of_peak.push_back(peak > 0 ? 100 * static_cast<double>(rows * cols * tokens) / seconds / peak : 0);
        of_plain.push_back(plain.seconds.back() / seconds);
    }
    const double seconds = median(grouped.seconds);
    std::printf("| %-13s | %-5s | %lld x %lld | %6lld | %7d | %7.1f | %3.0f%% | %6.2f | %3.0f%% of %5.1f | %4.2f (%4.2f-%4.2f) |\n", kernels.name,
                name_of(kind), static_cast<long long>(rows), static_cast<long long>(cols), static_cast<long long>(tokens), threads,
                static_cast<double>(rows * cols * tokens) / seconds / 1e9, median(of_peak), static_cast<double>(grouped.bytes) / seconds / 1e9,
                median(of_memory), median(memory) / 1e9, median(of_plain), *std::min_element(of_plain.begin(), of_plain.end()),
                *std::max_element(of_plain.begin(), of_plain.end()));
    std::fflush(stdout);
}

bool parse(int argc, char ** argv, Options & options) {
    for (int i = 1; i + 1 < argc; i += 2) {
        const std::string name = argv[i];
        const char * value = argv[i + 1];
        if (name == "--tier") {
            options.tier = value;
        } else if (name == "--kind") {
            options.kind = value;
        } else if (name == "--shape") {
            if (std::sscanf(value, "%lldx%lld", &options.rows, &options.cols) != 2 || options.rows < 1 || options.cols < 1 ||
                options.cols % 256 != 0 || options.cols > max_cols) {
                return false;
            }
        } else if (name == "--tokens") {
            options.tokens = {std::max(1, std::atoi(value))};
        } else if (name == "--threads") {
            options.threads = {std::max(1, std::atoi(value))};
        } else if (name == "--rounds") {
            options.rounds = std::max(1, std::atoi(value));
        } else if (name == "--seconds") {
            options.seconds = std::atof(value);
        } else {
            return false;
        }
    }
    return argc % 2 == 1;
}

}  // namespace

int main(int argc, char ** argv) {
    Options options;
    if (!parse(argc, argv, options)) {
        std::fprintf(stderr, "usage: bench_grouped [--tier NAME] [--kind q2_0|tq1_0|tq2_0] [--shape ROWSxCOLS] [--tokens N] [--threads N]\n"
                             "                     [--rounds N] [--seconds S]; columns are a multiple of 256\n");
        return 2;
    }
    const Selection selection = select_kernels(cpu_features(), options.tier.c_str());
    if (selection.kernels == nullptr) {
        std::fprintf(stderr, "bench_grouped: %s\n", selection.error.c_str());
        return 1;
    }
    Memory weights(rotation_bytes + (64 << 20));
    uint64_t state = 42;
    for (int64_t i = 0; i < weights.bytes; i += 8) {
        uint64_t codes = next_random(state);
        codes &= ~(codes & codes >> 1 & 0x5555555555555555ull);  // no code 3
        // One code of eight is 1, so that two bytes taken as a scale are neither infinite nor a denormal.
        codes = (codes & ~0x3000300030003000ull) | 0x1000100010001000ull;
        std::memcpy(weights.data + i, &codes, sizeof codes);
    }
    std::printf("| tier | kind | matrix | tokens | threads | G multiply-adds/s | of peak | GB/s | of memory | of I2_S |\n"
                "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (const Grouped kind : all_grouped) {
        for (const int64_t tokens : options.tokens) {
            for (const int threads : options.threads) {
                if (options.kind.empty() ? kind != Grouped::tq1_0 : options.kind == name_of(kind)) {  // in memory as tq2_0
                    run(options, *selection.kernels, *peaks::loops_for(selection.kernels->name), weights, kind, tokens, threads);
                }
            }
        }
    }
    return 0;
}
