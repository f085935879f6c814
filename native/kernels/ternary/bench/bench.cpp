// Speed of every tier over the shapes of real models, beside this machine's own limits measured around each figure.
//
//   bench_ternary [--tier NAME] [--layout NAME] [--model 2b4t|0.6b|8b|all] [--shape ROWSxCOLS] [--tokens N] [--threads N]
//                 [--rounds N] [--seconds S] [--json FILE]
//
// Each figure is the median of several rounds: limit, kernel, limit. Time is the CPU time of the slowest thread: nobody
// waits for anybody here, so on an idle machine it is the wall clock, and on a busy one it leaves the others' turns out.
// The weights are random codes, at least 256 MB of them in rotation, so that none stay in a cache between two uses. The
// result is checked against the scalar tier before anything is timed.

#include "bench_support.h"
#include "peaks/peaks.h"
#include "ternary/ternary.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace kernel_bench;
using namespace ternary;

constexpr int64_t rotation_bytes = 256 << 20;

struct Shape {
    int64_t rows, cols;
};

// The matrices of real models: q and o, k and v, gate and up, down. Empty for an unknown name.
std::vector<Shape> shapes_of(const std::string & model) {
    const struct {
        const char * name;
        std::vector<Shape> shapes;
    } models[] = {
        {"2b4t", {{2560, 2560}, {640, 2560}, {6912, 2560}, {2560, 6912}}},                 // BitNet b1.58 2B4T
        {"0.6b", {{2048, 1024}, {1024, 2048}, {1024, 1024}, {3072, 1024}, {1024, 3072}}},  // Qwen3 0.6B
        {"8b", {{4096, 4096}, {1024, 4096}, {14336, 4096}, {4096, 14336}}},                // Llama 3 8B
    };
    std::vector<Shape> found;
    for (const auto & known : models) {
        if (model == known.name || model == "all") {
            found.insert(found.end(), known.shapes.begin(), known.shapes.end());
        }
    }
    return found;
}

struct Options {
    std::string tier;
    std::vector<Shape> shapes = shapes_of("all");
    std::vector<int64_t> tokens;  // empty: a few; one for the scalar tier, which takes its time
    std::vector<int> threads = {1, 2};
    int rounds = 3;
    double seconds = 0.05;  // of kernel time in a round
    std::string layout;
    std::string json;

    std::vector<int64_t> tokens_for(const Kernels & kernels) const {
        return !tokens.empty() ? tokens : kernels.tier == Tier::scalar ? std::vector<int64_t>{1} : std::vector<int64_t>{1, 8, 128};
    }
    bool wants(Layout l) const { return layout.empty() || layout == layout_name(l); }
};

struct TierBench {
    const Kernels * kernels;
    Layout layout;
    const peaks::Loops * loops;
};

std::vector<TierBench> tiers_here() {
    std::vector<TierBench> result;
    const CpuFeatures cpu = all_that_runs();
#define TERNARY_TIER(name, needs)                                              \
    if (const Kernels * kernels = kernels_for(Tier::name, cpu)) {              \
        for (const Layout layout : all_layouts) {                              \
            if (kernels->offers(layout)) {                                     \
                result.push_back({kernels, layout, peaks::loops_for(#name)});  \
            }                                                                  \
        }                                                                      \
    }
#include "ternary/tiers.inc"
#undef TERNARY_TIER
    return result;
}

struct Case {
    Shape shape;
    int64_t tokens;
    std::vector<float> y;
    std::unique_ptr<Memory> activations;
    QuantizedBuffer q;

    Case(Shape s, int64_t n, const Kernels & kernels) : shape(s), tokens(n), y(n * s.rows) {
        activations = std::make_unique<Memory>(quantized_bytes(s.cols, n));
        q = quantized_buffer(activations->data, s.cols, n);
        std::vector<float> x(s.cols);
        uint64_t state = 88172645463325252ull;
        for (int64_t token = 0; token < n; ++token) {
            for (float & v : x) {
                v = static_cast<float>(static_cast<int64_t>(next_random(state) >> 40) - (1 << 23));
            }
            quantize(kernels, x.data() - token * s.cols, s.cols, s.cols, q, token, token + 1);
        }
    }
};

// First and last panels of the first matrix against the scalar tier.
bool check(const TierBench & tier, Case & c, const uint8_t * packed) {
    const Kernels & scalar = *kernels_for(Tier::scalar, CpuFeatures{});
    std::vector<int32_t> want(c.y.size()), got(c.y.size());
    const int64_t last = panel_count(c.shape.rows) - 1;
    for (const int64_t panel : {static_cast<int64_t>(0), last}) {
        scalar.products(tier.layout).matmul_i32(packed, c.shape.rows, c.shape.cols, c.q, want.data(), c.shape.rows, panel, panel + 1);
        tier.kernels->products(tier.layout).matmul_i32(packed, c.shape.rows, c.shape.cols, c.q, got.data(), c.shape.rows, panel, panel + 1);
    }
    return want == got;
}

struct Result {
    std::string tier;
    std::string layout;
    Shape shape;
    int64_t tokens;
    int threads;
    double multiply_adds, bytes, peak_multiply_adds, peak_bytes;  // per second; medians
    double percent_multiply_adds, percent_bytes;                  // medians of the rounds' own ratios
    double low_percent, high_percent;                             // of the larger of the two
};

class Bench {
public:
    Bench(const Options & options, Memory & weights) : options_(options), weights_(weights) {}

    double kernel_seconds(const TierBench & tier, Case & c, int threads, int64_t calls) const {
        const int64_t bytes = static_cast<int64_t>(packed_bytes(tier.layout, c.shape.rows, c.shape.cols));
        const int64_t matrices = weights_.bytes / bytes;
        const int64_t panels = panel_count(c.shape.rows);
        return timed(threads, [&](int thread) {
            for (int64_t call = 0; call < calls; ++call) {
                tier.kernels->products(tier.layout).matmul(weights_.data + call % matrices * bytes, c.shape.rows, c.shape.cols, 0.5f, c.q, c.y.data(),
                                     c.shape.rows, thread * panels / threads, (thread + 1) * panels / threads);
            }
        }) / static_cast<double>(calls);
    }

    Result run(const TierBench & tier, Case & c, int threads) const {
        const double once = kernel_seconds(tier, c, threads, 1);
        const int64_t calls = std::max<int64_t>(1, static_cast<int64_t>(options_.seconds / once));
        const double bytes = static_cast<double>(packed_bytes(tier.layout, c.shape.rows, c.shape.cols));
        const double multiply_adds = static_cast<double>(c.shape.rows) * c.shape.cols * c.tokens;
        std::vector<double> seconds, peak_mac, peak_byte, percent_mac, percent_byte;
        for (int round = 0; round < options_.rounds; ++round) {
            const double mac_before = peak_multiply_adds(*tier.loops, threads);
            const double byte_before = peak_read(*tier.loops, weights_.data, weights_.bytes, threads);
            seconds.push_back(kernel_seconds(tier, c, threads, calls));
            peak_byte.push_back((byte_before + peak_read(*tier.loops, weights_.data, weights_.bytes, threads)) / 2);
            peak_mac.push_back((mac_before + peak_multiply_adds(*tier.loops, threads)) / 2);
            percent_mac.push_back(peak_mac.back() > 0 ? 100 * multiply_adds / seconds.back() / peak_mac.back() : 0);
            percent_byte.push_back(100 * bytes / seconds.back() / peak_byte.back());
        }
        const double percent_m = median(percent_mac), percent_b = median(percent_byte);
        const std::vector<double> & larger = percent_m > percent_b ? percent_mac : percent_byte;
        return {tier.kernels->name, layout_name(tier.layout), c.shape, c.tokens, threads, multiply_adds / median(seconds), bytes / median(seconds),
                median(peak_mac), median(peak_byte), percent_m, percent_b, *std::min_element(larger.begin(), larger.end()),
                *std::max_element(larger.begin(), larger.end())};
    }

    // Bytes of codes per second that repack_i2_s reads, as the load of a model does it; median of the rounds.
    double repack_bytes(const Kernels & kernels, Layout layout, int threads) const {
        constexpr int64_t rows = 2560, cols = 2560;
        constexpr int64_t bytes = rows * cols / 4;
        const int64_t packed_size = static_cast<int64_t>(packed_bytes(layout, rows, cols));
        const int64_t matrices = weights_.bytes / bytes;
        Memory packed(matrices * packed_size);
        std::vector<double> rates;
        for (int round = 0; round <= options_.rounds; ++round) {
            const double seconds = timed(threads, [&](int thread) {
                for (int64_t m = 0; m < matrices; ++m) {
                    repack_i2_s(kernels, layout, weights_.data + m * bytes, rows, cols, packed.data + m * packed_size,
                                thread * panel_count(rows) / threads, (thread + 1) * panel_count(rows) / threads);
                }
            });
            if (round > 0) {  // the first one also maps the pages
                rates.push_back(static_cast<double>(matrices * bytes) / seconds);
            }
        }
        return median(rates);
    }

private:
    const Options & options_;
    Memory & weights_;
};

struct RepackRate {
    Layout layout;
    int threads;
    double bytes;  // per second
};

void print(const Result & r) {
    if (r.peak_multiply_adds > 0) {
        std::printf("| %-10s | %-6s | %4lld x %4lld | %6lld | %7d | %7.1f | %4.0f%% of %5.1f | %6.2f | %4.0f%% of %5.1f | %3.0f-%3.0f%% |\n", r.tier.c_str(),
                    r.layout.c_str(), static_cast<long long>(r.shape.rows), static_cast<long long>(r.shape.cols), static_cast<long long>(r.tokens), r.threads,
                    r.multiply_adds / 1e9, r.percent_multiply_adds, r.peak_multiply_adds / 1e9, r.bytes / 1e9, r.percent_bytes,
                    r.peak_bytes / 1e9, r.low_percent, r.high_percent);
    } else {
        std::printf("| %-10s | %-6s | %4lld x %4lld | %6lld | %7d | %7.1f | %14s | %6.2f | %4.0f%% of %5.1f | %3.0f-%3.0f%% |\n", r.tier.c_str(),
                    r.layout.c_str(), static_cast<long long>(r.shape.rows), static_cast<long long>(r.shape.cols), static_cast<long long>(r.tokens), r.threads,
                    r.multiply_adds / 1e9, "", r.bytes / 1e9, r.percent_bytes, r.peak_bytes / 1e9, r.low_percent, r.high_percent);
    }
    std::fflush(stdout);
}

bool write_json(const std::string & path, const std::vector<Result> & results, const std::vector<RepackRate> & repack) {
    FILE * file = path == "-" ? stdout : std::fopen(path.c_str(), "w");
    if (file == nullptr) {
        std::perror(path.c_str());
        return false;
    }
    std::fprintf(file, "{\"schema\": 2, \"rotation_bytes\": %lld, \"repack\": [", static_cast<long long>(rotation_bytes));
    for (size_t i = 0; i < repack.size(); ++i) {
        std::fprintf(file, "%s{\"layout\": \"%s\", \"threads\": %d, \"gbps\": %.3f}", i ? ", " : "", layout_name(repack[i].layout),
                     repack[i].threads, repack[i].bytes / 1e9);
    }
    std::fprintf(file, "], \"rows\": [");
    for (size_t i = 0; i < results.size(); ++i) {
        const Result & r = results[i];
        std::fprintf(file,
                     "%s\n {\"tier\": \"%s\", \"layout\": \"%s\", \"rows\": %lld, \"cols\": %lld, \"tokens\": %lld, \"threads\": %d, \"gmacs\": %.3f, \"gbps\": %.3f,"
                     " \"peak_gmacs\": %.3f, \"peak_gbps\": %.3f, \"percent_of_gmacs\": %.2f, \"percent_of_gbps\": %.2f,"
                     " \"percent_low\": %.2f, \"percent_high\": %.2f}",
                     i ? "," : "", r.tier.c_str(), r.layout.c_str(), static_cast<long long>(r.shape.rows), static_cast<long long>(r.shape.cols),
                     static_cast<long long>(r.tokens), r.threads, r.multiply_adds / 1e9, r.bytes / 1e9, r.peak_multiply_adds / 1e9,
                     r.peak_bytes / 1e9, r.percent_multiply_adds, r.percent_bytes, r.low_percent, r.high_percent);
    }
    std::fprintf(file, "\n]}\n");
    return path == "-" || std::fclose(file) == 0;
}

bool parse(int argc, char ** argv, Options & options) {
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) {
            return false;
        }
        const char * value = argv[i + 1];
        if (name == "--tier") {
            options.tier = value;
        } else if (name == "--layout") {
            options.layout = value;
            if (!options.wants(Layout::two_bit) && !options.wants(Layout::five_trit)) {
                return false;
            }
        } else if (name == "--model") {
            options.shapes = shapes_of(value);
            if (options.shapes.empty()) {
                return false;
            }
        } else if (name == "--shape") {
            long long rows = 0, cols = 0;
            if (std::sscanf(value, "%lldx%lld", &rows, &cols) != 2 || rows < 1 || cols < 1 || cols > max_cols || rows * cols % 128 != 0) {
                return false;
            }
            options.shapes = {{rows, cols}};
        } else if (name == "--tokens") {
            options.tokens = {std::max(1, std::atoi(value))};
        } else if (name == "--threads") {
            options.threads = {std::max(1, std::atoi(value))};
        } else if (name == "--rounds") {
            options.rounds = std::max(1, std::atoi(value));
        } else if (name == "--seconds") {
            options.seconds = std::atof(value);
        } else if (name == "--json") {
            options.json = value;
        } else {
            return false;
        }
    }
    return true;
}

}  // namespace

int main(int argc, char ** argv) {
    Options options;
    if (!parse(argc, argv, options)) {
        std::fprintf(stderr, "usage: bench_ternary [--tier NAME] [--layout NAME] [--model 2b4t|0.6b|8b|all] [--shape ROWSxCOLS] [--tokens N] [--threads N]\n"
                             "                     [--rounds N] [--seconds S] [--json FILE]\n");
        return 2;
    }
    const Selection selection = select_kernels(all_that_runs(), options.tier.c_str());
    if (selection.kernels == nullptr) {
        std::fprintf(stderr, "bench_ternary: %s\n", selection.error.c_str());
        return 1;
    }
    Memory weights(rotation_bytes);
    uint64_t state = 42;
    for (int64_t i = 0; i < weights.bytes; i += 8) {
        uint64_t codes = next_random(state);
        codes &= ~(codes & codes >> 1 & 0x5555555555555555ull);  // a code 3 becomes a 2; such a byte is a five_trit one, too
        std::memcpy(weights.data + i, &codes, sizeof codes);
    }
    const Bench bench(options, weights);
    std::vector<Result> results;
    std::vector<RepackRate> repack;
    for (const Layout layout : all_layouts) {
        for (const int threads : options.threads) {
            if (selection.kernels->offers(layout) && options.wants(layout)) {
                repack.push_back({layout, threads, bench.repack_bytes(*selection.kernels, layout, threads)});
                std::printf("repack from I2_S to %s, 2560 x 2560, %d thread(s): %.2f GB/s of codes\n", layout_name(layout), threads,
                            repack.back().bytes / 1e9);
            }
        }
    }
    std::printf("\n| tier       | layout | rows x cols | tokens | threads | Gmac/s  | of the peak    | GB/s   | of the memory  | rounds   |\n"
                "| ---------- | ------ | ----------- | ------ | ------- | ------- | -------------- | ------ | -------------- | -------- |\n");
    for (const TierBench & tier : tiers_here()) {
        if ((!options.tier.empty() && options.tier != tier.kernels->name) || !options.wants(tier.layout)) {
            continue;
        }
        for (const Shape shape : options.shapes) {
            for (const int64_t tokens : options.tokens_for(*tier.kernels)) {
                Case c(shape, tokens, *tier.kernels);
                if (!check(tier, c, weights.data)) {
                    std::fprintf(stderr, "bench_ternary: %s is wrong at %lld x %lld, %lld tokens: run the tests\n", tier.kernels->name,
                                 static_cast<long long>(shape.rows), static_cast<long long>(shape.cols), static_cast<long long>(tokens));
                    return 1;
                }
                for (const int threads : options.threads) {
                    results.push_back(bench.run(tier, c, threads));
                    print(results.back());
                }
            }
        }
    }
    return options.json.empty() || write_json(options.json, results, repack) ? 0 : 1;
}
