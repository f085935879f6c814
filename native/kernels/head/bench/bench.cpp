// Speed of every tier's head beside this machine's own limits, measured around each figure.
//
//   bench_head [--tier NAME] [--type q6_k] [--shape ROWSxCOLS] [--tokens N] [--threads N] [--rounds N] [--json FILE]
//
// Each figure is the median of several rounds: limit, kernel, limit. Time is the CPU time of the slowest thread: nobody
// waits for anybody here, so on an idle machine it is the wall clock, and on a busy one it leaves the others' turns out.
// The weights are random bytes, more of them than a cache holds. The result is checked against the scalar tier before
// anything is timed. The memory's speed counts the bytes of the GGUF type, not the few more that panels take.

#include "bench_support.h"
#include "head/head.h"
#include "peaks/peaks.h"
#include "ternary/ternary.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

using namespace kernel_bench;

struct Options {
    std::string tier, type, json;
    int64_t rows = 128256, cols = 2560;  // BitNet b1.58 2B4T
    std::vector<int64_t> tokens = {1, 2, 4, 8, 16, 128};
    std::vector<int> threads = {1, 2};
    int rounds = 5;
};

struct TypeBench {
    const char * name;
    head::Type type;
};
constexpr TypeBench types[] = {{"q6_k", head::Type::q6_k}, {"q5_k", head::Type::q5_k}, {"q4_k", head::Type::q4_k}};

constexpr const char * tiers[] = {"avx2", "avx512vnni", "avx512gfni", "avx512amx"};

// Random rows as a GGUF file would hold them; the halves among the bytes are made finite.
void fill(uint8_t * rows, size_t bytes, const TypeBench & type) {
    uint64_t state = 42;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        const uint64_t random = next_random(state);
        std::memcpy(rows + i, &random, sizeof random);
    }
    const size_t block = head::row_bytes(type.type, head::block_cols);
    const size_t half = type.type == head::Type::q6_k ? 208 : 0;
    for (size_t at = 0; at < bytes; at += block) {
        rows[at + half + 1] = 0x10;
        rows[at + (half == 0 ? 3 : half + 1)] = 0x10;
    }
}

struct Batch {
    Memory memory;
    head::Batch batch;
    Batch(int64_t cols, int64_t tokens) : memory(tokens * head::token_blocks(cols) * static_cast<int64_t>(sizeof(head::Activations))) {
        auto * blocks = reinterpret_cast<head::Activations *>(memory.data);
        std::vector<float> x(cols);
        uint64_t state = 7;
        for (int64_t token = 0; token < tokens; ++token) {
            for (float & value : x) {
                value = static_cast<float>(static_cast<int32_t>(next_random(state) >> 32));
            }
            head::quantize(x.data(), cols, blocks + token * head::token_blocks(cols));
        }
        batch = {blocks, tokens};
    }
};

struct Weights {
    const Options & options;
    const TypeBench & type;
    Memory packed;

    Weights(const Options & o, const TypeBench & t)
        : options(o), type(t), packed(static_cast<int64_t>(head::packed_bytes(t.type, o.rows, o.cols))) {}

    double bytes() const { return static_cast<double>(options.rows) * static_cast<double>(head::row_bytes(type.type, options.cols)); }

    // Seconds of every call with all threads.
    double seconds(const head::Kernels & kernels, const head::Batch & batch, std::vector<float> & y, int threads) const {
        const int64_t panels = head::panel_count(options.rows);
        return timed(threads, [&](int thread) {
            kernels.matmul(type.type, packed.data, options.rows, options.cols, batch, y.data(), options.rows,
                           thread * panels / threads, (thread + 1) * panels / threads);
        });
    }
};

// First and last panel against the scalar tier.
bool check(const head::Kernels & kernels, const Weights & w, const head::Batch & batch) {
    const int64_t rows = w.options.rows, panels = head::panel_count(rows);
    std::vector<float> want(rows * batch.tokens), got(want);
    for (const int64_t panel : {static_cast<int64_t>(0), panels - 1}) {
        for (auto * side : {&want, &got}) {
            const head::Kernels & used = side == &want ? *head::kernels_for("scalar") : kernels;
            used.matmul(w.type.type, w.packed.data, rows, w.options.cols, batch, side->data(), rows, panel, panel + 1);
        }
    }
    return std::memcmp(want.data(), got.data(), want.size() * sizeof(float)) == 0;
}

struct Result {
    std::string tier, type;
    int64_t tokens;
    int threads;
    double gmacs, gbps, percent_gmacs, percent_gbps, low, high, peak_gmacs, peak_gbps;
};

Result run(const peaks::Loops & loops, const head::Kernels & kernels, const Weights & w, const Batch & b, int threads) {
    const int64_t tokens = b.batch.tokens;
    std::vector<float> y(w.options.rows * tokens);
    const auto bytes = static_cast<int64_t>(w.bytes());
    const double macs = static_cast<double>(w.options.rows) * static_cast<double>(w.options.cols * tokens);
    w.seconds(kernels, b.batch, y, threads);
    std::vector<double> seconds, byte_peaks, mac_peaks, percent_b, percent_m;
    for (int round = 0; round < w.options.rounds; ++round) {
        const double bytes_before = peak_read(loops, w.packed.data, bytes, threads);
        const double macs_before = peak_multiply_adds(loops, threads);
        seconds.push_back(w.seconds(kernels, b.batch, y, threads));
        byte_peaks.push_back((bytes_before + peak_read(loops, w.packed.data, bytes, threads)) / 2);
        mac_peaks.push_back((macs_before + peak_multiply_adds(loops, threads)) / 2);
        percent_b.push_back(100 * w.bytes() / seconds.back() / byte_peaks.back());
        percent_m.push_back(100 * macs / seconds.back() / mac_peaks.back());
    }
    const std::vector<double> & larger = median(percent_b) > median(percent_m) ? percent_b : percent_m;
    return {kernels.name, w.type.name, tokens, threads, macs / median(seconds) / 1e9, w.bytes() / median(seconds) / 1e9,
            median(percent_m), median(percent_b), *std::min_element(larger.begin(), larger.end()),
            *std::max_element(larger.begin(), larger.end()), median(mac_peaks) / 1e9, median(byte_peaks) / 1e9};
}

void print(const Result & r) {
    std::printf("| %-10s | %s | %6lld | %7d | %7.1f | %3.0f%% of %5.1f | %6.2f | %3.0f%% of %5.1f | %3.0f-%3.0f%% |\n", r.tier.c_str(),
                r.type.c_str(), static_cast<long long>(r.tokens), r.threads, r.gmacs, r.percent_gmacs, r.peak_gmacs, r.gbps,
                r.percent_gbps, r.peak_gbps, r.low, r.high);
    std::fflush(stdout);
}

bool write_json(const Options & options, const std::vector<Result> & results) {
    FILE * file = options.json == "-" ? stdout : std::fopen(options.json.c_str(), "w");
    if (file == nullptr) {
        std::perror(options.json.c_str());
        return false;
    }
    std::fprintf(file, "{\"schema\": 1, \"head_rows\": %lld, \"head_cols\": %lld, \"rows\": [", static_cast<long long>(options.rows),
                 static_cast<long long>(options.cols));
    for (size_t i = 0; i < results.size(); ++i) {
        const Result & r = results[i];
        std::fprintf(file,
                     "%s\n {\"tier\": \"%s\", \"type\": \"%s\", \"tokens\": %lld, \"threads\": %d, \"gmacs\": %.3f, \"gbps\": %.3f,"
                     " \"peak_gmacs\": %.3f, \"peak_gbps\": %.3f, \"percent_of_gmacs\": %.2f, \"percent_of_gbps\": %.2f,"
                     " \"percent_low\": %.2f, \"percent_high\": %.2f}",
                     i ? "," : "", r.tier.c_str(), r.type.c_str(), static_cast<long long>(r.tokens), r.threads, r.gmacs, r.gbps,
                     r.peak_gmacs, r.peak_gbps, r.percent_gmacs, r.percent_gbps, r.low, r.high);
    }
    std::fprintf(file, "\n]}\n");
    return options.json == "-" || std::fclose(file) == 0;
}

bool parse(int argc, char ** argv, Options & o) {
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) {
            return false;
        }
        const char * value = argv[i + 1];
        long long rows = 0, cols = 0;
        if (name == "--tier") {
            o.tier = value;
        } else if (name == "--type") {
            o.type = value;
        } else if (name == "--shape") {
            if (std::sscanf(value, "%lldx%lld", &rows, &cols) != 2 || rows < 1 || cols < 1 || cols % head::block_cols != 0) {
                return false;
            }
            o.rows = rows;
            o.cols = cols;
        } else if (name == "--tokens") {
            o.tokens = {std::max(1, std::atoi(value))};
        } else if (name == "--threads") {
            o.threads = {std::max(1, std::atoi(value))};
        } else if (name == "--rounds") {
            o.rounds = std::max(1, std::atoi(value));
        } else if (name == "--json") {
            o.json = value;
        } else {
            return false;
        }
    }
    return true;
}

// Random weights in panels; prints how fast they were repacked.
void prepare(const Options & options, const TypeBench & type, Weights & weights) {
    Memory source(static_cast<int64_t>(weights.bytes()));
    fill(source.data, static_cast<size_t>(weights.bytes()), type);
    const int threads = options.threads.back();
    const int64_t panels = head::panel_count(options.rows);
    for (int round = 0; round < 2; ++round) {  // the first one also maps the pages
        const double seconds = timed(threads, [&](int thread) {
            head::repack(type.type, source.data, options.rows, options.cols, weights.packed.data, thread * panels / threads,
                         (thread + 1) * panels / threads);
        });
        std::printf("%s repacked by %d thread(s)%s: %.3f s\n", type.name, threads, round == 0 ? ", pages mapped" : "", seconds);
    }
}

}  // namespace

int main(int argc, char ** argv) {
    Options options;
    if (!parse(argc, argv, options)) {
        std::fprintf(stderr, "usage: bench_head [--tier NAME] [--type q6_k] [--shape ROWSxCOLS] [--tokens N] [--threads N] "
                             "[--rounds N] [--json FILE]\n");
        return 2;
    }
    std::vector<Result> results;
    for (const TypeBench & type : types) {
        if (!options.type.empty() && options.type != type.name) {
            continue;
        }
        Weights weights(options, type);
        prepare(options, type, weights);
        std::printf("\n| tier       | type | tokens | threads | Gmac/s  | of the peak   | GB/s   | of the memory | rounds   |\n"
                    "| ---------- | ---- | ------ | ------- | ------- | ------------- | ------ | ------------- | -------- |\n");
        for (const char * tier : tiers) {
            const ternary::Selection here = ternary::select_kernels(ternary::all_that_runs(), tier);
            if (here.kernels == nullptr || (!options.tier.empty() && options.tier != tier)) {
                continue;
            }
            const head::Kernels & kernels = *head::kernels_for(tier);
            for (const int64_t tokens : options.tokens) {
                const Batch batch(options.cols, tokens);
                if (!check(kernels, weights, batch.batch)) {
                    std::fprintf(stderr, "bench_head: %s is wrong at %lld tokens: run the tests\n", tier,
                                 static_cast<long long>(tokens));
                    return 1;
                }
                for (const int threads : options.threads) {
                    results.push_back(run(*peaks::loops_for(tier), kernels, weights, batch, threads));
                    print(results.back());
                }
            }
        }
    }
    return options.json.empty() || write_json(options, results) ? 0 : 1;
}
