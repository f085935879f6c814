// Runs one kernel a fixed number of times and nothing else: for counting instructions, which are repeatable where
// seconds are not. benchmarks/check_instruction_counts.py runs it under callgrind.
//
//   bench_once                                    the tiers that can run here, as JSON
//   bench_once TIER LAYOUT ROWSxCOLS TOKENS CALLS
//
// Count inside bench_once_calls alone; the rest makes the operands.

#include "bench_support.h"
#include "ternary/ternary.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

using namespace kernel_bench;
using namespace ternary;

struct Work {
    const Kernels * kernels;
    Layout layout;
    int64_t rows, cols, tokens, calls;
    std::vector<uint8_t> packed, activations;
    std::vector<float> y;
};

void list_tier(const Kernels * kernels, const char *& separator) {
    if (kernels == nullptr) {
        return;
    }
    std::printf("%s\"%s\": [", separator, kernels->name);
    const char * comma = "";
    for (const Layout layout : all_layouts) {
        if (kernels->offers(layout)) {
            std::printf("%s\"%s\"", comma, layout_name(layout));
            comma = ", ";
        }
    }
    std::printf("]");
    separator = ", ";
}

void list_tiers() {
    std::printf("{\"compiler\": \"%s\", \"tiers\": {", __VERSION__);
    const CpuFeatures cpu = cpu_features();
    const char * separator = "";
#define TERNARY_TIER(name, needs) list_tier(kernels_for(Tier::name, cpu), separator);
#include "ternary/tiers.inc"
#undef TERNARY_TIER
    std::printf("}}\n");
}

}  // namespace

extern "C" __attribute__((noinline)) void bench_once_calls(void * opaque) {
    Work & work = *static_cast<Work *>(opaque);
    const QuantizedTokens batch = quantized_buffer(work.activations.data(), work.cols, work.tokens);
    for (int64_t call = 0; call < work.calls; ++call) {
        work.kernels->products(work.layout).matmul(work.packed.data(), work.rows, work.cols, 0.5f, batch, work.y.data(), work.rows, 0,
                                                   panel_count(work.rows));
    }
}

int main(int argc, char ** argv) {
    if (argc == 1) {
        list_tiers();
        return 0;
    }
    Work work{};
    long long rows = 0, cols = 0;
    if (argc != 6 || std::sscanf(argv[3], "%lldx%lld", &rows, &cols) != 2 || rows < 1 || cols < 1 || cols > max_cols) {
        std::fprintf(stderr, "usage: bench_once [TIER LAYOUT ROWSxCOLS TOKENS CALLS]\n");
        return 2;
    }
    const Selection selection = select_kernels(cpu_features(), argv[1]);
    if (selection.kernels == nullptr) {
        std::fprintf(stderr, "bench_once: %s\n", selection.error.c_str());
        return 1;
    }
    work.kernels = selection.kernels;
    bool known = false;
    for (const Layout layout : all_layouts) {
        if (std::strcmp(argv[2], layout_name(layout)) == 0 && work.kernels->offers(layout)) {
            work.layout = layout;
            known = true;
        }
    }
    if (!known) {
        std::fprintf(stderr, "bench_once: %s does not offer layout %s\n", argv[1], argv[2]);
        return 1;
    }
    work.rows = rows;
    work.cols = cols;
    work.tokens = std::atoll(argv[4]) > 0 ? std::atoll(argv[4]) : 1;
    work.calls = std::atoll(argv[5]) > 0 ? std::atoll(argv[5]) : 1;
    uint64_t state = 42;
    work.packed.resize(packed_bytes(work.layout, rows, cols));
    for (uint8_t & byte : work.packed) {
        const unsigned codes = next_random(state) & 0xff;
        byte = static_cast<uint8_t>(codes & ~(codes & codes >> 1 & 0x55u));  // a code 3 becomes a 2
    }
    std::vector<float> x(cols);
    for (float & value : x) {
        value = static_cast<float>(static_cast<int64_t>(next_random(state) >> 40) - (1 << 23));
    }
    work.activations.resize(quantized_bytes(cols, work.tokens));
    work.y.resize(work.tokens * rows);
    const QuantizedBuffer batch = quantized_buffer(work.activations.data(), cols, work.tokens);
    for (int64_t token = 0; token < work.tokens; ++token) {
        quantize(*work.kernels, x.data() - token * cols, cols, cols, batch, token, token + 1);
    }
    bench_once_calls(&work);
    return 0;
}
