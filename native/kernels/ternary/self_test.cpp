#include "self_test.h"

#include <pthread.h>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

namespace ternary {
namespace {

// One call at a time: the handler of a signal belongs to the process. Nothing here is thread-local, because a handler may
// not wait for the dynamic linker to make such a variable.
std::mutex one_at_a_time;
pthread_t tested_thread;
volatile sig_atomic_t testing = 0;
sigjmp_buf back;
struct sigaction previous;

void on_sigill(int signal, siginfo_t * info, void * context) {
    if (testing != 0 && pthread_equal(pthread_self(), tested_thread) != 0) {
        siglongjmp(back, 1);
    }
    if ((previous.sa_flags & SA_SIGINFO) != 0) {
        previous.sa_sigaction(signal, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(signal);
    } else {
        sigaction(signal, &previous, nullptr);  // the instruction is executed again, and ends the process
    }
}

bool run_guarded(void (*work)(void *), void * context) {
    if (sigsetjmp(back, 0) != 0) {
        return false;
    }
    testing = 1;
    work(context);
    return true;
}

// Large enough for every instruction of every tier: a whole panel, a strip with a last chunk, a batch and a single token. The
// tests of the kernels are for everything else. (avx512amx uses tiles from 9 tokens on.)
constexpr int64_t rows = panel_rows, cols = 208, grouped_cols = 256, tokens = 9;

// What a test allocates. It belongs to the caller of the guarded call, because siglongjmp runs no destructors.
class Memory {
  public:
    std::vector<float> & floats(int64_t count) { return floats_.emplace_back(count); }
    std::vector<uint8_t> & bytes(int64_t count) { return bytes_.emplace_back(count); }

  private:
    std::deque<std::vector<float>> floats_;  // a deque, as references into it stay valid
    std::deque<std::vector<uint8_t>> bytes_;
};

struct Numbers {
    uint32_t state = 2463534242u;
    uint32_t next() {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return state;
    }
};

std::vector<float> & random_activations(Memory & memory) {
    Numbers numbers;
    std::vector<float> & x = memory.floats(tokens * grouped_cols);
    for (float & value : x) {
        value = static_cast<float>(static_cast<int32_t>(numbers.next() >> 8) - (1 << 23)) * 0x1p-20f;
    }
    return x;
}

std::vector<uint8_t> & random_i2_s(Memory & memory) {
    Numbers numbers;
    std::vector<uint8_t> & codes = memory.bytes(rows * cols / 4);
    for (uint8_t & byte : codes) {
        const uint32_t bits = numbers.next() >> 24;
        byte = static_cast<uint8_t>(bits & ~(bits & bits >> 1 & 0x55));  // a code 3 becomes a 2
    }
    return codes;
}

// Q2_0 has its scale in front of 16 bytes of codes, TQ2_0 behind 64.
std::vector<uint8_t> & random_grouped(Grouped kind, Memory & memory) {
    const int64_t block = kind == Grouped::q2_0 ? 18 : 66, scale_at = kind == Grouped::q2_0 ? 0 : 64;
    Numbers numbers;
    std::vector<uint8_t> & bytes = memory.bytes(rows * (grouped_cols / weight_group(kind)) * block);
    for (size_t i = 0; i < bytes.size(); ++i) {
        const int64_t in_block = static_cast<int64_t>(i) % block - scale_at;
        bytes[i] = in_block == 1 ? 0x2c : static_cast<uint8_t>(numbers.next() >> 24);  // scales from 1/16 to 5/64
    }
    return bytes;
}

// Everything that a tier computes, one after the other.
struct Results {
    std::vector<std::vector<uint8_t>> quantized, products, grouped;

    template <class T>
    static void add(std::vector<std::vector<uint8_t>> & to, const std::vector<T> & values) {
        const auto * bytes = reinterpret_cast<const uint8_t *>(values.data());
        to.emplace_back(bytes, bytes + values.size() * sizeof(T));
    }
};

void compute_layout(const Kernels & kernels, Layout layout, const QuantizedTokens & batch, Memory & memory, Results & results) {
    const std::vector<uint8_t> & codes = random_i2_s(memory);
    std::vector<uint8_t> & packed = memory.bytes(packed_bytes(layout, rows, cols));
    repack_i2_s(kernels, layout, codes.data(), rows, cols, packed.data(), 0, panel_count(rows));
    for (const int64_t count : {tokens, int64_t{1}}) {
        QuantizedTokens some = batch;
        some.tokens = count;
        std::vector<float> & y = memory.floats(tokens * rows);
        kernels.products(layout).matmul(packed.data(), rows, cols, 0.37f, some, y.data(), rows, 0, panel_count(rows));
        Results::add(results.products, y);
    }
}

void compute_grouped(const Kernels & kernels, Grouped kind, const std::vector<float> & x, Memory & memory, Results & results) {
    const std::vector<uint8_t> & source = random_grouped(kind, memory);
    std::vector<uint8_t> & packed = memory.bytes(grouped_packed_bytes(kind, rows, grouped_cols));
    repack_grouped(kind, source.data(), rows, grouped_cols, packed.data(), 0, panel_count(rows));
    std::vector<uint8_t> & quantized = memory.bytes(grouped_quantized_bytes(kind, grouped_cols, tokens));
    const GroupedBuffer batch = grouped_buffer(kind, quantized.data(), grouped_cols, tokens);
    for (int64_t token = 0; token < tokens; ++token) {
        kernels.grouped.quantize_token(kind, x.data() + token * grouped_cols, grouped_cols, batch.q + token * batch.stride,
                                       batch.step + token * batch.groups, batch.minus_sum + token * batch.groups);
    }
    Results::add(results.quantized, quantized);
    for (const int64_t count : {tokens, int64_t{1}}) {
        GroupedTokens some = batch;
        some.tokens = count;
        std::vector<float> & y = memory.floats(tokens * rows);
        kernels.grouped.matmul(kind, packed.data(), rows, grouped_cols, some, y.data(), rows, 0, panel_count(rows));
        Results::add(results.grouped, y);
    }
}

void compute(const Kernels & kernels, const Kernels & layouts_of, Memory & memory, Results & results) {
    const std::vector<float> & x = random_activations(memory);
    std::vector<uint8_t> & quantized = memory.bytes(quantized_bytes(cols, tokens));
    const QuantizedBuffer batch = quantized_buffer(quantized.data(), cols, tokens);
    quantize(kernels, x.data(), grouped_cols, cols, batch, 0, tokens);
    Results::add(results.quantized, quantized);
    for (const Layout layout : all_layouts) {
        if (layouts_of.offers(layout)) {
            compute_layout(kernels, layout, batch, memory, results);
        }
    }
    for (const Grouped kind : {Grouped::q2_0, Grouped::tq2_0}) {  // tq1_0 is tq2_0 in memory
        compute_grouped(kernels, kind, x, memory, results);
    }
}

}  // namespace

bool runs_without_sigill(void (*work)(void *), void * context) {
    const std::lock_guard<std::mutex> guard(one_at_a_time);
    tested_thread = pthread_self();
    struct sigaction action = {};
    action.sa_sigaction = on_sigill;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigset_t sigill, mask;
    sigemptyset(&sigill);
    sigaddset(&sigill, SIGILL);
    if (sigaction(SIGILL, &action, &previous) != 0) {
        return false;
    }
    pthread_sigmask(SIG_UNBLOCK, &sigill, &mask);  // the system ends a process that blocks the signal of its own instruction
    const bool ran = run_guarded(work, context);
    testing = 0;
    pthread_sigmask(SIG_SETMASK, &mask, nullptr);
    sigaction(SIGILL, &previous, nullptr);
    return ran;
}

std::string self_test(const Kernels & kernels) {
    struct Test {
        const Kernels & kernels;
        Memory memory;
        Results results;
    } test{kernels, {}, {}};
    const auto work = [](void * context) {
        auto & own = *static_cast<Test *>(context);
        compute(own.kernels, own.kernels, own.memory, own.results);
    };
    if (!runs_without_sigill(work, &test)) {
        return "executes an instruction that this machine refuses (SIGILL), although its CPU claims to have it";
    }
    Memory memory;
    Results expected;
    compute(*kernels_for(Tier::scalar, CpuFeatures{}), kernels, memory, expected);
    const char * wrong = test.results.quantized != expected.quantized  ? "the quantized activations"
                         : test.results.products != expected.products ? "the products of I2_S weights"
                         : test.results.grouped != expected.grouped   ? "the products of grouped weights"
                                                                      : nullptr;
    return wrong == nullptr ? "" : std::string("computes ") + wrong + " wrongly on this machine";
}

}  // namespace ternary
